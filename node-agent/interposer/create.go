package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// creation is one `create` and what is known about it.
type creation struct {
	cfg      *Config
	cmd      command
	argv     []string
	env      []string
	deadline int64 // CLOCK_BOOTTIME
	bundle   string
	id       identity
	dir      string   // the ticket's directory
	lock     *os.File // the claim; it ends with the last process that has this file open
	keeper   *keeper  // set in a keeper
}

// errTransparent says: this is an ordinary start.
var errTransparent = errors.New("start transparently")

// retryPause lies between two attempts to reach an agent that is not there.
const retryPause = 100 * time.Millisecond

// run decides between an ordinary start, the gate and a refusal. It returns an exit code, or becomes runc.
func (c *creation) run() int {
	err := c.decide()
	if errors.Is(err, errTransparent) {
		return passThrough(c.cfg, c.cmd, c.argv, c.env)
	}
	if err != nil {
		return refuse(c.cmd, "container-migration: "+err.Error())
	}
	return 0
}

// decide returns nil when the container was restored or is held, errTransparent, or the sentence of a refusal.
func (c *creation) decide() error {
	if err := c.identify(); err != nil {
		return err
	}
	if c.id.kind == "sandbox" {
		if err := markPod(c.cfg, c.id.podUID); err != nil {
			return fmt.Errorf("cannot record on disk that this pod is a migration's target (%w), so its sandbox is not started; check the node's disk", err)
		}
		if err := reach(c.cfg, atSandbox); err != nil {
			return err
		}
		return errTransparent
	}
	return c.decideContainer()
}

// identify finds out who this is; errTransparent when it is nobody of ours.
func (c *creation) identify() error {
	bundle, err := filepath.Abs(c.cmd.bundle())
	if err != nil {
		return errTransparent // runc cannot do anything with it either
	}
	c.bundle = bundle
	if c.id, err = readIdentity(bundle); err != nil {
		return errTransparent // runc fails on it by itself, with its own words
	}
	if !c.id.isMarked(c.cfg) {
		return errTransparent
	}
	if !podUIDPattern.MatchString(c.id.podUID) {
		return fmt.Errorf("the runtime names %q as the UID of a pod with the annotation %s; that is not a pod UID, so it is not started",
			shorten(c.id.podUID, 80), migrationAnnotation)
	}
	c.dir = c.cfg.ticketDir(c.id.podUID)
	return nil
}

func (c *creation) decideContainer() error {
	if c.id.kind != "container" || !containerPattern.MatchString(c.id.container) || !idPattern.MatchString(c.cmd.id) {
		return fmt.Errorf("type %q, name %q or id %q of a container of a migration's target pod is not as Kubernetes writes it, so it is not started",
			shorten(c.id.kind, 80), shorten(c.id.container, 80), shorten(c.cmd.id, 80))
	}
	if err := c.look(); err != nil {
		return err
	}
	if c.cmd.sub != "create" {
		return fmt.Errorf("`%s` of a container of a migration's target pod is not allowed before the migration resumed", c.cmd.sub)
	}
	// The annotation can be there without a directory: when the sandbox began under another runtime.
	if err := markPod(c.cfg, c.id.podUID); err != nil {
		return fmt.Errorf("cannot write the ticket's directory: %w; check the node's disk", err)
	}
	lock, err := claim(c.dir, c.id.container, c.deadline)
	if err != nil {
		return fmt.Errorf("container %s: %w; the kubelet tries again", c.id.container, err)
	}
	c.lock = lock
	defer runtime.KeepAlive(lock)
	if err := killRecordedTree(c.dir, c.id.container); err != nil {
		return fmt.Errorf("cannot make sure that an earlier restored copy of container %s is dead: %w", c.id.container, err)
	}
	if err := reach(c.cfg, atClaimed); err != nil {
		return err
	}
	return c.gate()
}

// look reads the ticket: nil means that the gate decides.
func (c *creation) look() error {
	state, err := readTicket(c.dir)
	switch {
	case err != nil:
		return fmt.Errorf("cannot read the migration's ticket, so nothing is started: %w", err)
	case state == ticketDestroyed:
		return errors.New("this migration was aborted, so this pod never starts; delete the pod (the source pod is the one that runs)")
	case state == ticketResuming:
		// The kubelet starts a container only when it knows of no other one, but a create that was killed right after
		// the hook wrote `resuming` leaves a running tree that nobody knows of.
		if err := killRecordedTree(c.dir, c.id.container); err != nil {
			return fmt.Errorf("cannot make sure that an earlier copy of container %s is dead: %w", c.id.container, err)
		}
		if c.isGenerated() {
			return c.createNoop(false)
		}
		return errTransparent
	}
	return nil
}

// gateRequest is the first line of the gate's connection.
type gateRequest struct {
	Role        string `json:"role"`
	PodUID      string `json:"podUID"`
	Namespace   string `json:"namespace,omitempty"`
	Pod         string `json:"pod,omitempty"`
	Migration   string `json:"migration"`
	Container   string `json:"container"`
	ContainerID string `json:"containerID"`
	SandboxID   string `json:"sandboxID"`
	Bundle      string `json:"bundle"`
	PID         int    `json:"pid"`
	Deadline    int64  `json:"deadlineBoottimeNs"`
	Keeper      bool   `json:"keeper,omitempty"`
}

type gateAnswer struct {
	Action   string   `json:"action"`
	Message  string   `json:"message"`
	ImageDir string   `json:"imageDir"`
	Options  []string `json:"options"`
	Last     bool     `json:"last"`
	Late     bool     `json:"late"`
}

// gate asks the agent until there is an answer or the deadline passes. Before each attempt the disk is looked at,
// because what is written there decides, and it may have changed while we waited for the claim or for an agent.
func (c *creation) gate() error {
	cause := errors.New("no attempt was made")
	for boottime() < c.deadline {
		if err := c.look(); err != nil {
			return err
		}
		conn, answer, err := c.ask()
		if err == nil {
			defer conn.close()
			return c.obey(conn, answer)
		}
		if errors.Is(err, errBadAnswer) {
			return fmt.Errorf("%w, so container %s is not started; agent and interposer must be of one version", err, c.id.container)
		}
		if cause = err; !errors.Is(err, errDeadline) {
			time.Sleep(retryPause)
		}
	}
	return fmt.Errorf("container %s waits for its checkpoint and got no permission in time (%v); the kubelet tries again. "+
		"See the ContainerMigration's conditions and the node agent's pod on this node", c.id.container, cause)
}

// ask is one connection to the agent, up to its answer. While it is open the agent sees this create waiting.
func (c *creation) ask() (*agentConn, gateAnswer, error) {
	var answer gateAnswer
	conn, err := dialAgent(c.cfg)
	if err != nil {
		return nil, answer, err
	}
	migration := c.id.migration
	if len(migration) > 253 {
		migration = ""
	}
	err = conn.send(gateRequest{Role: "gate", PodUID: c.id.podUID, Namespace: c.id.namespace, Pod: c.id.pod, Migration: migration,
		Container: c.id.container, ContainerID: c.cmd.id, SandboxID: c.id.sandbox, Bundle: c.bundle, PID: os.Getpid(), Deadline: c.deadline, Keeper: c.keeper != nil})
	if err == nil {
		err = conn.receive(&answer, c.deadline, nil)
	}
	if err != nil {
		conn.close()
		return nil, answer, err
	}
	return conn, answer, nil
}

// obey acts on the agent's answer.
func (c *creation) obey(conn *agentConn, answer gateAnswer) error {
	switch answer.Action {
	case "restore":
		return (&restore{creation: c, conn: conn, imageDir: answer.ImageDir, options: answer.Options}).run()
	case "fresh":
		return c.createFresh(answer.Last)
	case "noop":
		return c.createNoop(answer.Late)
	case "keep":
		if c.keeper != nil {
			return errors.New("the node agent asked a keeper for a keeper")
		}
		conn.close() // the keeper comes in our place
		return c.leaveKeeper()
	case "refuse":
		if answer.Message == "" {
			return errors.New("the node agent refused this container without giving a reason")
		}
		return errors.New(shorten(answer.Message, 2000))
	case "pass":
		if err := c.look(); err != nil {
			return err
		}
		return errors.New("the node agent said pass, but the ticket on disk is not `resuming`, so nothing is started")
	}
	return fmt.Errorf("the node agent answered %q, which this interposer does not know; agent and interposer must be of one version",
		shorten(answer.Action, 80))
}
