package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// A container that is left out of the migration starts afresh, but not before the ticket is resuming: it is created
// really, and its `start` waits. The last container of the pod blocks there, which keeps the pod Pending; the others
// return from `start` at once, so that the kubelet goes on, and leave a process behind that starts them later.

// starterCommand is no subcommand of runc's; it is found only where `start` puts it.
const starterCommand = "container-migration-start"

// startPause lies between two looks at the ticket.
const startPause = 50 * time.Millisecond

// freshMark is what `create` leaves for `start`: run/fresh/<container ID>.
type freshMark struct {
	PodUID    string `json:"podUID"`
	Migration string `json:"migration"`
	Container string `json:"container"`
	Last      bool   `json:"last"`
	Late      bool   `json:"late,omitempty"` // the late gate: the agent says when, before the commit
}

// createFresh marks the container and lets the real runc create it.
func (c *creation) createFresh(last bool) error {
	if err := c.markFresh(freshMark{Last: last}); err != nil {
		return fmt.Errorf("container %s cannot be marked as one that waits for the commit: %w", c.id.container, err)
	}
	return errTransparent
}

func (c *creation) markFresh(mark freshMark) error {
	mark.PodUID, mark.Migration, mark.Container = c.id.podUID, c.id.migration, c.id.container
	data, err := encode(mark)
	if err != nil {
		return err
	}
	path := c.cfg.fresh(c.cmd.id)
	return errors.Join(privateDir(filepath.Dir(path)), writeAtomic(path, data))
}

// readFresh returns the mark of a container that waits for the commit; ok is false for every other one.
func readFresh(cfg *Config, id string) (mark freshMark, ok bool, err error) {
	if !idPattern.MatchString(id) || !exists(cfg.fresh(id)) {
		return mark, false, nil
	}
	data, err := os.ReadFile(cfg.fresh(id))
	if err == nil {
		err = json.Unmarshal(data, &mark)
	}
	if err == nil && !podUIDPattern.MatchString(mark.PodUID) {
		err = errors.New("it names no pod")
	}
	if err != nil {
		err = fmt.Errorf("the mark of container %s cannot be read: %w", id, err)
	}
	return mark, true, err
}

// freshStart is the `start` of such a container.
type freshStart struct {
	cfg  *Config
	cmd  command
	argv []string
	env  []string
	mark freshMark
}

// run starts the container now, later, or never.
func (s *freshStart) run(deadline int64) int {
	if s.mark.Last {
		return s.startAfterCommit(deadline)
	}
	switch state, err := readTicket(s.cfg.ticketDir(s.mark.PodUID)); {
	case err != nil:
		return s.refuse(err)
	case state == ticketResuming:
		return passThrough(s.cfg, s.cmd, s.argv, s.env)
	}
	if err := s.leaveStarter(); err != nil {
		return s.refuse(err)
	}
	return 0
}

func (s *freshStart) refuse(err error) int {
	return refuse(s.cmd, fmt.Sprintf("container-migration: container %s is not started: %v", s.mark.Container, err))
}

// startAfterCommit waits and then becomes the real `runc start`. Without a deadline (0) it waits as long as there is
// such a container.
func (s *freshStart) startAfterCommit(deadline int64) int {
	if err := s.wait(deadline); err != nil {
		return s.refuse(err)
	}
	return passThrough(s.cfg, s.cmd, s.argv, s.env)
}

// leaveStarter runs this binary without the runtime's pipes, which must close for `start` to be seen to end.
func (s *freshStart) leaveStarter() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	args := append([]string{s.argv[0], starterCommand}, s.argv[1:]...)
	_, err = syscall.ForkExec(s.cfg.Self, args, &syscall.ProcAttr{Env: s.env, Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}})
	return err
}

// runStarter is the main of what is left behind.
func runStarter(cfg *Config, argv, env []string) int {
	argv = append([]string{argv[0]}, argv[2:]...)
	cmd, err := parseCommand(argv[1:])
	if err != nil {
		return refuse(cmd, err.Error())
	}
	mark, ok, err := readFresh(cfg, cmd.id)
	if err != nil || !ok {
		return refuse(cmd, fmt.Sprintf("container-migration: container %s is not one that waits: %v", cmd.id, err))
	}
	return (&freshStart{cfg, cmd, argv, env, mark}).startAfterCommit(0)
}

// startRequest tells the agent that this container is there and waits: it commits only then.
type startRequest struct {
	Role        string `json:"role"`
	PodUID      string `json:"podUID"`
	Migration   string `json:"migration"`
	Container   string `json:"container"`
	ContainerID string `json:"containerID"`
	PID         int    `json:"pid"`
}

// wait returns nil when the ticket is resuming. The disk decides; the connection only says that somebody waits. What waits
// at the late gate does nothing when it is started, so there the agent's word is enough.
func (s *freshStart) wait(deadline int64) error {
	var conn *agentConn
	defer func() { conn.close() }()
	for deadline == 0 || boottime() < deadline {
		state, err := readTicket(s.cfg.ticketDir(s.mark.PodUID))
		switch {
		case err != nil:
			return err
		case state == ticketResuming:
			return nil
		case state == ticketDestroyed:
			return errors.New("this migration was aborted, so this pod never starts; delete the pod")
		case !exists(stateDir(s.cmd)):
			return errors.New("it is gone")
		}
		if conn == nil {
			_ = reach(s.cfg, atStart)
			conn = s.announce()
		}
		if conn == nil {
			time.Sleep(startPause)
		} else if ready, err := pollFds([]int{conn.fd}, startPause); err != nil || ready[0] {
			if err == nil && s.mark.Late && s.called(conn) {
				return nil
			}
			conn.close() // to others it says nothing: the agent is gone, or does not know us
			conn = nil
			time.Sleep(startPause)
		}
	}
	return errors.New("it waits for the migration's commit, which did not come in time; the kubelet tries again")
}

// called says whether the agent has said that the copy is complete: the late gate opens.
func (s *freshStart) called(conn *agentConn) bool {
	var answer struct {
		Action string `json:"action"`
	}
	return conn.receive(&answer, boottime()+int64(time.Second), nil) == nil && answer.Action == "go"
}

func (s *freshStart) announce() *agentConn {
	conn, err := dialAgent(s.cfg)
	if err != nil {
		return nil
	}
	if conn.send(startRequest{"start", s.mark.PodUID, s.mark.Migration, s.mark.Container, s.cmd.id, os.Getpid()}) != nil {
		conn.close()
		return nil
	}
	return conn
}

// mayNotRunYet says that a container waits for the commit, so that nothing may be executed in it.
func mayNotRunYet(cfg *Config, id string) bool {
	if !idPattern.MatchString(id) {
		return false
	}
	podUID := ""
	if data, err := os.ReadFile(cfg.restored(id)); err == nil {
		podUID = string(bytes.TrimSpace(data))
	} else if mark, ok, _ := readFresh(cfg, id); ok {
		podUID = mark.PodUID
	} else {
		return false
	}
	state, err := readTicket(cfg.ticketDir(podUID))
	return err != nil || state == ticketPending || state == ticketDestroyed
}
