package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// dial tries until the deadline: an agent that restarts at this moment finds a tree that is held all the same.
func (h *hook) dial() (*agentConn, error) {
	for {
		conn, err := dialAgent(h.cfg)
		if err == nil {
			return conn, nil
		}
		if checkErr := h.check(); checkErr != nil {
			return nil, errors.Join(checkErr, err)
		}
		time.Sleep(retryPause)
	}
}

// check says whether the tree may still go on: everybody alive, the bundle there, the ticket undecided, in time.
func (h *hook) check() error {
	ready, err := pollFds(h.chain, 0)
	if err != nil {
		return err
	}
	for _, dead := range ready {
		if dead {
			return errWatched
		}
	}
	if _, err := os.Stat(filepath.Join(h.file.Bundle, "config.json")); err != nil {
		return fmt.Errorf("the bundle is gone: %w", err)
	}
	if state, err := readTicket(h.file.TicketDir); err != nil || state != ticketPending {
		return errors.Join(errors.New("the ticket is not pending"), err)
	}
	if boottime() >= h.file.Deadline {
		return errDeadline
	}
	return nil
}

// watch opens pidfds of everything that must live while the tree is held, and of the tree itself: a tree that is dead
// must not be committed.
func (h *hook) watch() error {
	if err := h.watchParents(); err != nil {
		return err
	}
	fd, err := pidfdOpen(h.initPID)
	if err != nil {
		return fmt.Errorf("the restored tree is dead: %w", err)
	}
	h.chain = append(h.chain, fd)
	return nil
}

// watchParents opens pidfds of all ancestors up to the interposer: CRIU, runc, the interposer itself, and wrappers that
// may lie between. A parent that is still the parent after its pidfd was opened is the process the pidfd means.
func (h *hook) watchParents() error {
	pid := os.Getpid()
	for range 32 {
		stat, err := readStat(pid)
		if err != nil || stat.parent <= 1 {
			break
		}
		fd, err := pidfdOpen(stat.parent)
		if err != nil {
			break
		}
		h.chain = append(h.chain, fd)
		again, err := readStat(pid)
		if err != nil || again.parent != stat.parent {
			break
		}
		if pid = stat.parent; pid == h.file.InterposerPID {
			if isProcess(pid, h.file.InterposerStart) {
				return nil
			}
			break
		}
	}
	return errors.New("the interposer that began this restore is not among the hook's parents any more")
}
