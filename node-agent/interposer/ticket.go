package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ticketState is the local decision about a target pod (docs/protocol.md, section 3).
type ticketState int

const (
	ticketNone ticketState = iota
	ticketPending
	ticketResuming
	ticketDestroyed
)

// readTicket looks at the names only. `pending` is renamed away, so it is looked at first: a rename between the looks
// then shows up as its result, never as "no ticket". Two results at once cannot come from the protocol and are refused.
func readTicket(dir string) (ticketState, error) {
	var found [3]bool
	for i, name := range []string{"pending", "resuming", "destroyed"} {
		_, err := os.Lstat(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return ticketNone, err
		}
		found[i] = err == nil
	}
	pending, resuming, destroyed := found[0], found[1], found[2]
	switch {
	case resuming && destroyed:
		return ticketNone, errors.New("the ticket in " + dir + " is both resuming and destroyed")
	case resuming:
		return ticketResuming, nil
	case destroyed:
		return ticketDestroyed, nil
	case pending:
		return ticketPending, nil
	}
	return ticketNone, nil
}

// ticketContent is what the agent wrote into the ticket.
type ticketContent struct {
	Migration  string   `json:"migration"`
	Containers []string `json:"containers"` // those that are restored
	Generated  []string `json:"generated"`  // init containers that the operator added
}

// readTicketContent reads the ticket under its present name.
func readTicketContent(dir, name string) (ticketContent, error) {
	var content ticketContent
	file, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return content, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxLine))
	if err != nil {
		return content, err
	}
	return content, json.Unmarshal(data, &content)
}

// markPod records on disk that this pod is a migration's target. From then on none of its containers starts without
// permission, whatever happens to the annotation, the agent or the node.
func markPod(cfg *Config, podUID string) error {
	dir := cfg.ticketDir(podUID)
	if err := privateDir(dir); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(dir, "marked"), os.O_CREATE|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return err
	}
	return errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)), syncDir(cfg.StateDir))
}

// startResuming is the point of no return: rename(2) of `pending` succeeds for one caller only. A failed fsync is
// reported apart from a failed rename, because then the decision has been taken.
func startResuming(dir string) (renamed bool, err error) {
	if exists(filepath.Join(dir, "destroyed")) {
		return false, errors.New("the ticket is destroyed")
	}
	if err := os.Rename(filepath.Join(dir, "pending"), filepath.Join(dir, "resuming")); err != nil {
		return false, err
	}
	return true, syncDir(dir)
}

var errClaimed = errors.New("an older create of this container still holds the claim")

// claim takes the lock that only one living `create` of a container can have. The kernel drops it with the process, so
// a retry gets it exactly when the older interposer is dead. The file is closed on exec.
func claim(dir, container string, deadline int64) (*os.File, error) {
	path := filepath.Join(dir, container+".claim")
	for {
		file, err := tryClaim(path)
		if file != nil {
			return file, nil
		}
		if err != nil {
			return nil, err
		}
		if boottime() >= deadline {
			return nil, errClaimed
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// tryClaim returns nil, nil while another process has the lock, or when the file it locked is no longer the one at
// path: the agent may have removed the directory, and two files of one name would be two locks.
func tryClaim(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot claim: %w", err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		ours, errA := file.Stat()
		there, errB := os.Lstat(path)
		if errA == nil && errB == nil && os.SameFile(ours, there) {
			return file, nil
		}
	}
	file.Close()
	if err == nil || errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
		return nil, nil
	}
	return nil, fmt.Errorf("cannot claim: %w", err)
}
