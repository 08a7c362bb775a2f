package main

import (
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
func clearIPC(path string) error {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	theirs, errA := os.Stat(path)
	ours, errB := os.Stat("/proc/self/ns/ipc")
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	if os.SameFile(theirs, ours) {
		return errors.New("the pod uses the node's own IPC namespace")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err := errnoOf(syscall.RawSyscall(sysSetns, uintptr(fd), cloneNewIPC, 0)); err != nil {
			done <- fmt.Errorf("enter %s: %w", path, err)
			return
		}
		done <- errors.Join(
			removeIPC("shm", func(id uintptr) error { return errnoOf(syscall.Syscall(syscall.SYS_SHMCTL, id, ipcRemove, 0)) }),
			removeIPC("msg", func(id uintptr) error { return errnoOf(syscall.Syscall(syscall.SYS_MSGCTL, id, ipcRemove, 0)) }),
			removeIPC("sem", func(id uintptr) error {
				return errnoOf(syscall.Syscall6(syscall.SYS_SEMCTL, id, 0, ipcRemove, 0, 0, 0))
			}),
		)
	}()
	return <-done
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
