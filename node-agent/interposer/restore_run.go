package main

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// runRunc runs `runc restore` with our own three standard descriptors, untouched: they become the container's. The child
// dies with us; the kernel ties that to the thread that forked it, hence the lock.
func (r *restore) runRunc() (int, error) {
	runc, err := findRunc(r.cfg, r.env)
	if err != nil {
		return -1, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	args := r.cmd.restoreArgs(r.bundle, filepath.Join(r.imageDir, "images"), filepath.Join(r.imageDir, "work"),
		slices.Contains(r.options, "file-locks"), slices.Contains(r.options, lazyPages))
	pid, err := forkExec(runc, args, r.restoreEnv(), []uintptr{0, 1, 2})
	if err != nil {
		return -1, err
	}
	done := make(chan struct{})
	defer close(done)
	go r.watchdog(pid, done)
	if r.keeper != nil {
		go r.keeper.announce(r.conn)
	}
	return waitFor(pid)
}

// watchdog ends a restore that hangs where no hook looks. At the deadline the hook acts first; a second later whatever
// is left of the restore is killed, unless the container has resumed.
func (r *restore) watchdog(runc int, done <-chan struct{}) {
	fd, err := pidfdOpen(runc)
	if err != nil {
		return
	}
	defer syscall.Close(fd)
	for boottime() < r.deadline+int64(time.Second) {
		select {
		case <-done:
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
	if state, err := readTicket(r.dir); err == nil && state == ticketResuming {
		return
	}
	for _, child := range append(stopDescendants(runc), fd) {
		_ = pidfdSignal(child, syscall.SIGKILL)
	}
}

// restoreEnv lets runc find our CRIU first.
func (r *restore) restoreEnv() []string {
	env := slices.DeleteFunc(slices.Clone(r.env), func(entry string) bool { return strings.HasPrefix(entry, "PATH=") })
	path := lookupEnv(r.env, "PATH")
	if path == "" {
		path = r.cfg.SearchDirs
	}
	return append(env, "PATH="+r.cfg.BinDir+":"+path)
}

// deleteContainer clears what a failed restore left in runc's books. containerd deletes a container that failed to
// create only when it was the first of its shim, and CRI-O when it retries; a second delete does no harm.
func (r *restore) deleteContainer() {
	runc, err := findRunc(r.cfg, r.env)
	if err != nil {
		return
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer null.Close()
	args := append(append([]string{"runc"}, r.cmd.globals...), "delete", "--force", r.cmd.id)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, err := forkExec(runc, args, r.env, []uintptr{null.Fd(), null.Fd(), null.Fd()})
	if err != nil {
		return
	}
	timer := time.AfterFunc(10*time.Second, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	defer timer.Stop()
	_, _ = waitFor(pid)
}
