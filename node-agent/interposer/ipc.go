package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// System V objects belong to the pod's namespace, not to a process: a restore that failed leaves them behind, and the
// next one in the same sandbox would fail on them ("Failed to create shm set: File exists"). So before the first
// container is restored they are removed. Nothing of the pod has run yet, so they can be nobody else's.

const (
	cloneNewIPC = 0x08000000
	ipcRemove   = 0
)

// sysSetns has another number on each architecture.
var sysSetns = map[string]uintptr{"amd64": 308, "arm64": 268}[runtime.GOARCH]

// clearIPC empties the IPC namespace at path. It refuses the node's own.
//
// The thread that enters it goes back: ending it with its goroutine is no way, for the process's first thread does not
// end, and /proc/self would show that namespace from then on.
func clearIPC(path string) error {
	theirs, err := os.Open(path)
	if err != nil {
		return err
	}
	defer theirs.Close()
	ours, err := os.Open("/proc/thread-self/ns/ipc")
	if err != nil {
		return err
	}
	defer ours.Close()
	if same, err := sameFile(theirs, ours); err != nil || same {
		return cmp.Or(err, errors.New("the pod uses the node's own IPC namespace"))
	}
	runtime.LockOSThread()
	if err := enterIPC(theirs); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	cleared := errors.Join(
		removeIPC("shm", func(id uintptr) error { return errnoOf(syscall.Syscall(syscall.SYS_SHMCTL, id, ipcRemove, 0)) }),
		removeIPC("msg", func(id uintptr) error { return errnoOf(syscall.Syscall(syscall.SYS_MSGCTL, id, ipcRemove, 0)) }),
		removeIPC("sem", func(id uintptr) error {
			return errnoOf(syscall.Syscall6(syscall.SYS_SEMCTL, id, 0, ipcRemove, 0, 0, 0))
		}),
	)
	if err := enterIPC(ours); err != nil {
		return errors.Join(cleared, err) // still locked: no other goroutine may run on this thread
	}
	runtime.UnlockOSThread()
	return cleared
}

func sameFile(a, b *os.File) (bool, error) {
	infoA, errA := a.Stat()
	infoB, errB := b.Stat()
	if err := errors.Join(errA, errB); err != nil {
		return false, err
	}
	return os.SameFile(infoA, infoB), nil
}

// enterIPC moves the calling thread into the IPC namespace.
func enterIPC(namespace *os.File) error {
	if err := errnoOf(syscall.RawSyscall(sysSetns, namespace.Fd(), cloneNewIPC, 0)); err != nil {
		return fmt.Errorf("enter %s: %w", namespace.Name(), err)
	}
	return nil
}

// removeIPC removes all objects of a kind that the calling thread's namespace lists; the second column is their id.
func removeIPC(kind string, remove func(id uintptr) error) error {
	data, err := os.ReadFile("/proc/sysvipc/" + kind)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without System V IPC
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		id, err := strconv.ParseUint(fields[1], 10, 32)
		if err != nil {
			continue // the heading
		}
		if err := remove(uintptr(id)); err != nil && !errors.Is(err, syscall.EIDRM) && !errors.Is(err, syscall.EINVAL) {
			return fmt.Errorf("remove %s %d: %w", kind, id, err)
		}
	}
	return nil
}
