package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// A pod's containers are started one after another, so every one but the last must return from `create` while its tree
// is only held. What stays behind is the keeper: this binary again, with the claim and the container's standard
// descriptors. At the gate and for the hook it is the interposer; the `create` only waits for its word.

// keeperCommand is no subcommand of runc's; it is found only where `create` puts it.
const keeperCommand = "container-migration-keep"

// Descriptors that a keeper inherits behind the standard three.
const (
	keeperClaim  = 3
	keeperParent = 4
)

// keeperLine is what keeper and create say to each other, one line each.
type keeperLine struct {
	Held  int    `json:"held,omitempty"` // the tree's first process
	Error string `json:"error,omitempty"`
	Go    bool   `json:"go,omitempty"` // create has written the pid file and ends now
}

// leaveKeeper hands this container to a keeper and returns nil when its tree is held, so that `create` may succeed.
func (c *creation) leaveKeeper() error {
	ours, theirs, err := socketPair()
	if err != nil {
		return fmt.Errorf("cannot talk to a keeper: %w", err)
	}
	defer ours.close()
	pid, err := c.startKeeper(theirs)
	syscall.Close(theirs)
	if err != nil {
		return fmt.Errorf("cannot start a keeper for container %s: %w", c.id.container, err)
	}
	var line keeperLine
	// The keeper has the same deadline and explains itself better, so it gets a little longer.
	err = ours.receive(&line, c.deadline+int64(2*time.Second), nil)
	if err == nil && line.Held > 1 {
		if err = writePidFile(c.cmd.options["pid-file"], line.Held); err == nil {
			err = ours.send(keeperLine{Go: true})
		}
		if err == nil {
			_ = reach(c.cfg, atEarlyReturn) // what has been said to the keeper stands
			return nil
		}
	}
	_ = syscall.Kill(pid, syscall.SIGKILL) // our child, not yet waited for: the pid is its own
	_, _ = waitFor(pid)
	if line.Error != "" {
		return errors.New(line.Error)
	}
	failure := fmt.Errorf("the keeper of container %s ended without a held tree: %w", c.id.container, errors.Join(err, errors.New("see the agent's log")))
	return errors.Join(failure, killRecordedTree(c.dir, c.id.container))
}

// startKeeper runs this binary with the claim, our end of the conversation and the container's own standard
// descriptors. With a terminal those are the runtime's pipe, which must close for `create` to be seen to end, and the
// container's come by the console socket.
func (c *creation) startKeeper(parent int) (int, error) {
	stdio := []uintptr{0, 1, 2}
	if _, terminal := c.cmd.options["console-socket"]; terminal {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return -1, err
		}
		defer null.Close()
		stdio = []uintptr{null.Fd(), null.Fd(), null.Fd()}
	}
	shim := os.Getppid()
	stat, err := readStat(shim)
	if err != nil {
		return -1, err
	}
	args := []string{c.argv[0], keeperCommand, strconv.FormatInt(c.deadline, 10), strconv.Itoa(shim), strconv.FormatUint(stat.start, 10)}
	return syscall.ForkExec(c.cfg.Self, append(args, c.argv[1:]...), &syscall.ProcAttr{
		Env: c.env, Files: append(stdio, c.lock.Fd(), uintptr(parent)),
	})
}

// keeper is the other half: a creation that inherited its claim.
type keeper struct {
	*creation
	parent *agentConn // the waiting `create`
	shim   int        // pidfd of who will collect the container's exit
}

// runKeeper is the keeper's main. Its deadline is that of the `create` it stands for.
func runKeeper(cfg *Config, argv, env []string) int {
	k, err := newKeeper(cfg, argv, env)
	if err != nil {
		fmt.Fprintln(os.Stderr, "container-migration: "+err.Error())
		return 1
	}
	if err := k.keep(); err != nil {
		_ = k.parent.send(keeperLine{Error: shorten(err.Error(), 4000)})
		return 1
	}
	return 0
}

func newKeeper(cfg *Config, argv, env []string) (*keeper, error) {
	syscall.CloseOnExec(keeperClaim) // nothing that we start may keep the claim alive
	syscall.CloseOnExec(keeperParent)
	if len(argv) < 5 {
		return nil, errors.New("a keeper is started by create only")
	}
	deadline, errA := strconv.ParseInt(argv[2], 10, 64)
	shim, errB := strconv.Atoi(argv[3])
	start, errC := strconv.ParseUint(argv[4], 10, 64)
	argv = append([]string{argv[0]}, argv[5:]...)
	cmd, errD := parseCommand(argv[1:])
	if err := errors.Join(errA, errB, errC, errD); err != nil {
		return nil, err
	}
	pidfd, err := pidfdOpen(shim)
	if err != nil || !isProcess(shim, start) {
		return nil, errors.Join(errors.New("the container's shim is gone"), err)
	}
	c := &creation{cfg: cfg, cmd: cmd, argv: argv, env: env, deadline: deadline, lock: os.NewFile(keeperClaim, "claim")}
	k := &keeper{creation: c, parent: &agentConn{fd: keeperParent}, shim: pidfd}
	c.keeper = k
	return k, nil
}

// keep goes through the gate like a `create` that waits.
func (k *keeper) keep() error {
	if err := k.identify(); err != nil {
		return err
	}
	defer runtime.KeepAlive(k.lock)
	return k.gate()
}

// announce waits for the agent to say that the tree is held, lets `create` return, and from then on only watches. The
// keeper must not outlive whoever would collect the container's exit: a tree that ran on without a shim would be lost.
// Every way out but the first kills this process; the kernel then kills runc, and the hook its tree.
func (k *keeper) announce(conn *agentConn) {
	var held struct {
		Action  string `json:"action"`
		InitPID int    `json:"initPID"`
	}
	if err := conn.receive(&held, k.deadline, []int{k.shim, k.parent.fd}); err != nil {
		if errors.Is(err, errWatched) {
			os.Exit(1) // `create` or the shim died
		}
		return // the hook knows by itself when the agent is gone; its restore then fails and says so
	}
	var answer keeperLine
	_ = reach(k.cfg, atKept)
	err := k.parent.send(keeperLine{Held: held.InitPID})
	if err == nil {
		err = k.parent.receive(&answer, k.deadline, []int{k.shim})
	}
	if err != nil || held.Action != "held" || !answer.Go {
		os.Exit(1)
	}
	for {
		if ready, err := pollFds([]int{k.shim}, time.Second); err != nil || ready[0] {
			os.Exit(1)
		}
	}
}

// socketPair returns a connected pair, closed on exec; the other end is a bare descriptor for a child.
func socketPair() (*agentConn, int, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, err
	}
	return &agentConn{fd: fds[0]}, fds[1], nil
}

// writePidFile writes what runc would have written.
func writePidFile(path string, pid int) error {
	if path == "" {
		return nil
	}
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(temporary, []byte(strconv.Itoa(pid)), 0o666); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
