package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// The barrier: the hooks of one pod's containers meet at pre-resume before the ticket becomes `resuming`, so that either
// all trees run or none does (docs/protocol.md, section 3). Two kinds of lock, both of which the kernel drops with their
// holder:
//
//   - <container>.ready: that container's hook is at pre-resume, alive, and will not leave but by way of the mutex;
//   - barrier: the mutex. Only its holder looks who is ready, renames the ticket, or gives up its own readiness.
//
// So nobody who was counted as ready can decide to kill its tree while another renames the ticket.

// barrierPause lies between two looks at the others.
const barrierPause = 5 * time.Millisecond

// meet returns nil when the ticket is resuming: made so by this hook, or by another one of the same barrier.
func (h *hook) meet(containers []string) error {
	// The agent is how a hook learns that a sibling was lost for good; without it nobody would tell.
	conn, err := h.dial()
	if err != nil {
		return err
	}
	defer conn.close()
	if err := conn.send(h.request("pre-resume")); err != nil {
		return err
	}
	var ready *os.File // this hook's own readiness, once it has it
	for {
		met, err := h.look(conn, containers, &ready)
		if met || err != nil {
			return err
		}
		if _, err := pollFds(append([]int{conn.fd}, h.chain...), barrierPause); err != nil {
			time.Sleep(barrierPause) // whatever it is, nobody leaves but with the mutex
		}
	}
}

// look is one turn with the mutex. An error means that this hook has given up its readiness: its tree is to be killed.
func (h *hook) look(conn *agentConn, containers []string, ready **os.File) (met bool, err error) {
	mutex, err := h.lockFile("barrier", syscall.LOCK_EX)
	if err != nil {
		return false, err
	}
	defer mutex.Close()
	defer func() {
		if err != nil && *ready != nil {
			(*ready).Close() // still with the mutex
		}
	}()
	if state, err := readTicket(h.file.TicketDir); err == nil && state == ticketResuming && *ready != nil {
		return true, nil
	}
	if err := h.check(); err != nil {
		return false, err
	}
	if err := h.called(conn); err != nil {
		return false, err
	}
	if *ready == nil {
		if *ready, err = h.lockFile(h.file.Container+".ready", syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			return false, err
		}
	}
	for _, container := range containers {
		if container == h.file.Container {
			continue
		}
		there, err := h.lockFile(container+".ready", syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			there.Close()
			return false, nil // nobody holds it: that hook is not here yet
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return false, err
		}
	}
	return true, h.decide()
}

// called returns an error when the agent has called this hook back, or is gone.
func (h *hook) called(conn *agentConn) error {
	ready, err := pollFds([]int{conn.fd}, 0)
	if err != nil || !ready[0] {
		return err
	}
	var answer hookAnswer
	if err := conn.receive(&answer, h.file.Deadline, h.chain); err != nil {
		return err
	}
	return fmt.Errorf("the node agent said %q: %s", shorten(answer.Action, 80), shorten(answer.Message, 1000))
}

// lockFile opens a file of the ticket and locks it; the lock ends when it is closed.
func (h *hook) lockFile(name string, how int) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(h.file.TicketDir, name), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(file.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return file, nil
}
