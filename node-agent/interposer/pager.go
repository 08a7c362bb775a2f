package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// A container with much memory runs before that is in place: CRIU leaves the pages out, and the pager fills them in from
// the checkpoint, which lies here complete and verified. First what somebody waits for, the rest at full speed.
//
// The pager is this binary twice. The server does the work. The guard only holds the same userfaultfds: when the last one
// of a process is closed the kernel gives out zeroes for what is missing, and the container would go on with a memory that
// never was. So when the server dies before its time the guard kills the container, as if it had crashed, and only then
// lets go. When the guard dies the server goes on.

// pagerCommand and pagerServer are no subcommands of runc's; they are found only where a restore puts them.
const (
	pagerCommand = "container-migration-fill"
	pagerServer  = "container-migration-fill-server"
)

// lazyPages is the agent's word for it, and the name of runc's flag.
const lazyPages = "lazy-pages"

// Descriptors that guard and server inherit behind the standard three.
const (
	pagerListener = 3
	pagerGuard    = 4
)

// fillingRecord is tickets/<pod UID>/<container>.filling: as long as that process lives the container's memory is not
// complete, and the container can be neither checkpointed nor its checkpoint removed.
type fillingRecord struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"`
	BootID string `json:"bootId"`
}

func fillingFile(ticketDir, container string) string {
	return filepath.Join(ticketDir, container+".filling")
}

// startPager lets a pager listen where CRIU will look for it, in its work directory.
func (r *restore) startPager() error {
	work, err := os.Open(filepath.Join(r.imageDir, "work"))
	if err != nil {
		return err
	}
	defer work.Close()
	// By way of the descriptor: the path may be longer than a socket's name can be.
	name := fmt.Sprintf("/proc/self/fd/%d/lazy-pages.socket", work.Fd())
	_ = os.Remove(name)
	listener, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(listener)
	err = syscall.Bind(listener, &syscall.SockaddrUnix{Name: name})
	if err == nil {
		err = syscall.Listen(listener, 1)
	}
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	args := []string{r.cfg.Self, pagerCommand, r.imageDir, r.dir, r.id.container, strconv.Itoa(os.Getpid())}
	pid, err := syscall.ForkExec(r.cfg.Self, args, &syscall.ProcAttr{
		Dir: "/", Env: r.env, Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(listener)},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	stat, err := readStat(pid)
	if err != nil {
		return err
	}
	data, err := json.Marshal(fillingRecord{pid, stat.start, bootID()})
	if err != nil {
		return err
	}
	return writeAtomic(fillingFile(r.dir, r.id.container), data)
}

// runPager is the guard's main: image directory, ticket's directory, container, and the pid of the interposer.
func runPager(cfg *Config, argv []string) int {
	if len(argv) != 6 {
		return 1
	}
	imageDir, ticketDir, container := argv[2], argv[3], argv[4]
	surviveMemoryPressure()
	err := guardPages(cfg, imageDir, argv[5])
	if err != nil {
		// Nothing of it is released before the tree is dead.
		for killRecordedTree(ticketDir, container) != nil {
			time.Sleep(time.Second)
		}
	}
	_ = os.Remove(fillingFile(ticketDir, container))
	if err != nil {
		return 1
	}
	return 0
}

// guardPages holds every userfaultfd of the container until nothing is missing any more. They are never closed: this
// process ends.
func guardPages(cfg *Config, imageDir, interposer string) error {
	syscall.CloseOnExec(pagerListener)
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	args := []string{cfg.Self, pagerServer, imageDir, interposer}
	_, err = syscall.ForkExec(cfg.Self, args, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{0, 1, 2, pagerListener, uintptr(theirs)},
	})
	if err != nil {
		return err
	}
	syscall.Close(theirs)
	syscall.Close(pagerListener)
	one, space := make([]byte, 1), make([]byte, syscall.CmsgSpace(4))
	for {
		n, _, _, _, err := syscall.Recvmsg(ours.fd, one, space, syscall.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return err
		case n == 0:
			return errors.New("the server died")
		case one[0] == pagerDone:
			return nil
		}
	}
}

// surviveMemoryPressure leaves the container's cgroup limits and the runtime's, and asks to be killed last.
func surviveMemoryPressure() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-998"), 0o600)
	groups, _ := filepath.Glob("/sys/fs/cgroup/container-migration/cgroup.procs")
	if len(groups) == 0 {
		groups, _ = filepath.Glob("/sys/fs/cgroup/*/container-migration/cgroup.procs")
	}
	for _, group := range groups {
		_ = os.WriteFile(group, []byte("0"), 0o600)
	}
}
