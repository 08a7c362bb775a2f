package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// restoreFinished is what CRIU says on lazy-pages.socket when all is restored (criu/uffd.c of CRIU 4.2). Before, for each
// process: its pid, as the images count, or the negative pid of a zombie; and its userfaultfd with one byte.
const restoreFinished = 0x52535446

// What the server says to its guard, one byte each.
const (
	pagerHolds = 'h' // with a descriptor, to be held
	pagerDone  = 'd' // nothing is missing any more, or nobody is left who misses it
)

// pageServer fills in the memory of a restored container. One thread: what the kernel reports is dealt with between two
// copies, and nothing is copied while something is to be read.
type pageServer struct {
	cfg    *Config
	images string
	criu   int // -1 when it is gone
	guard  int
	tasks  []*pagedTask
	files  map[string][]byte
	remote *pageClient
	came   []*block // from the source, to be placed
	full   bool     // the restore is finished: fill in also what nobody waits for
}

// runPageServer is the server's main: image directory and the pid of the interposer. Why it failed stands where the
// interposer looks for what the hook says.
func runPageServer(cfg *Config, argv []string) int {
	if len(argv) != 4 {
		return 1
	}
	interposer, err := strconv.Atoi(argv[3])
	s := &pageServer{cfg: cfg, images: filepath.Join(argv[2], "images"), criu: -1, guard: pagerGuard, files: map[string][]byte{}}
	if err == nil {
		s.remote, err = newPageClient(cfg, argv[2])
	}
	if err == nil {
		err = s.serve(pagerListener, interposer)
	}
	if err == nil {
		err = syscall.Sendmsg(s.guard, []byte{pagerDone}, nil, nil, syscall.MSG_NOSIGNAL)
	}
	if err != nil {
		(&hook{imageDir: argv[2]}).log("filling the memory in", err)
		return 1
	}
	return 0
}

// serve returns nil when nothing is missing any more, or nobody is left who could miss it.
func (s *pageServer) serve(listener, interposer int) error {
	connected, err := s.accept(listener, interposer)
	if err != nil || !connected {
		return err
	}
	for !s.full || !s.allDone() {
		if err := s.look(); err != nil {
			return err
		}
	}
	return nil
}

// accept waits for CRIU; false when the interposer dies before that.
func (s *pageServer) accept(listener, interposer int) (bool, error) {
	alive, err := pidfdOpen(interposer)
	if errors.Is(err, syscall.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer syscall.Close(alive)
	for {
		ready, err := pollFds([]int{listener, alive}, time.Second)
		if err != nil {
			return false, err
		}
		if ready[0] {
			s.criu, _, err = syscall.Accept4(listener, syscall.SOCK_CLOEXEC)
			syscall.Close(listener)
			return err == nil, err
		}
		if ready[1] {
			return false, nil
		}
	}
}

// look waits for something to do, does what the kernel, the source and CRIU say, and then fills in a little.
func (s *pageServer) look() error {
	wait, fds := time.Second, []int{s.remote.wake[0]}
	if s.full {
		s.prefetch()
	}
	if _, local := s.local(); local && s.full || len(s.came) > 0 {
		wait = 0
	}
	for _, task := range s.tasks {
		fds = append(fds, task.uffd)
		if len(task.waiting) > 0 {
			wait = 0
		}
	}
	if s.criu >= 0 {
		fds = append(fds, s.criu)
	}
	ready, err := pollFds(fds, wait)
	if err != nil {
		return err
	}
	for i, task := range s.tasks {
		if ready[i+1] || len(task.waiting) > 0 || len(s.came) > 0 {
			if err := s.deal(task); err != nil {
				return err
			}
		}
	}
	if err := s.place(); err != nil {
		return err
	}
	if s.criu >= 0 && ready[len(ready)-1] {
		return s.hear()
	}
	if it, local := s.local(); local && s.full {
		return it.next()
	}
	return nil
}

// place fills in what came from the source; what cannot be now is tried again when the events were read.
func (s *pageServer) place() error {
	s.came = append(s.came, s.remote.answered()...)
	for len(s.came) > 0 {
		b := s.came[0]
		if b.err != nil {
			return b.err
		}
		for _, task := range s.tasks {
			if task.pid != b.pid || task.gone {
				continue
			}
			if placed, err := task.place(b); err != nil || !placed {
				return err
			}
		}
		s.remote.landed(b)
		s.came = s.came[1:]
	}
	return nil
}

// local returns a task with something that can be filled in from here.
func (s *pageServer) local() (*pagedTask, bool) {
	for _, task := range s.tasks {
		if _, ok := task.local(); ok {
			return task, true
		}
	}
	return nil, false
}

// prefetch asks the source for what nobody waits for yet.
func (s *pageServer) prefetch() {
	for len(s.remote.flying) < bulkRequests {
		b := s.nextBlock()
		if b == nil || !s.remote.request(b, false) {
			return
		}
	}
}

// nextBlock returns as much as is asked for at once of what the first task misses, and was not asked for.
func (s *pageServer) nextBlock() *block {
	for _, task := range s.tasks {
		b := &block{pid: task.pid}
		for _, it := range task.missing {
			if !it.remote || task.gone {
				continue
			}
			end := uint64(it.offset) + it.end - it.start
			for at := s.remote.next(task.pid, uint64(it.offset)); at < end; {
				to := min(s.remote.ahead(task.pid, at, end), at+remoteBytes-b.size())
				b.spans = append(b.spans, span{at, to})
				if b.size() >= remoteBytes || len(b.spans) == maxRanges {
					return b
				}
				at = s.remote.next(task.pid, to)
			}
		}
		if len(b.spans) > 0 {
			return b
		}
	}
	return nil
}

// deal reads what the kernel reports of a task.
func (s *pageServer) deal(task *pagedTask) error {
	born, err := task.events(s.remote)
	for _, child := range born {
		s.hold(child.uffd)
		s.tasks = append(s.tasks, child)
	}
	return err
}

func (s *pageServer) allDone() bool {
	return !slices.ContainsFunc(s.tasks, func(task *pagedTask) bool { return !task.done() })
}

// hear takes the next message of CRIU.
func (s *pageServer) hear() error {
	var raw [4]byte
	n, _, _, _, err := syscall.Recvmsg(s.criu, raw[:], nil, syscall.MSG_WAITALL)
	if err != nil {
		return fmt.Errorf("cannot hear CRIU: %w", err)
	}
	if n == 0 {
		syscall.Close(s.criu)
		s.criu = -1
		if !s.full {
			s.full, s.tasks = true, nil // the restore failed, and its tree is dead or dies
		}
		return nil
	}
	word := binary.NativeEndian.Uint32(raw[:])
	switch pid := int(int32(word)); {
	case n != 4:
		return errors.New("CRIU broke off in the middle of a message")
	case word == restoreFinished:
		s.full = true
		return reach(s.cfg, atFilling)
	case pid > 0:
		return s.take(pid)
	}
	return nil
}

// take receives a process's userfaultfd.
func (s *pageServer) take(pid int) error {
	one, space := make([]byte, 1), make([]byte, syscall.CmsgSpace(4))
	_, n, _, _, err := syscall.Recvmsg(s.criu, one, space, syscall.MSG_CMSG_CLOEXEC|syscall.MSG_WAITALL)
	if err != nil {
		return fmt.Errorf("no userfaultfd came for process %d: %w", pid, err)
	}
	messages, err := syscall.ParseSocketControlMessage(space[:n])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("no userfaultfd came for process %d: %w", pid, errors.Join(err, errBadAnswer))
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("no userfaultfd came for process %d: %w", pid, errors.Join(err, errBadAnswer))
	}
	s.hold(fds[0])
	memory, err := readLazyMemory(s.images, pid)
	if err != nil {
		return fmt.Errorf("the memory of process %d cannot be found: %w", pid, err)
	}
	pages, err := s.mapped(memory.pages)
	if err != nil {
		return err
	}
	s.tasks = append(s.tasks, &pagedTask{uffd: fds[0], pid: pid, missing: memory.pieces, pages: pages})
	return nil
}

// hold lets the guard hold a userfaultfd too: as long as anybody does, no missing page can be read as zeroes.
func (s *pageServer) hold(uffd int) {
	_ = syscall.Sendmsg(s.guard, []byte{pagerHolds}, syscall.UnixRights(uffd), nil, syscall.MSG_NOSIGNAL)
}

// mapped returns the content of a pages file; it stays when the file's name goes.
func (s *pageServer) mapped(path string) ([]byte, error) {
	if pages, ok := s.files[path]; ok {
		return pages, nil
	}
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return nil, err
	}
	pages, err := syscall.Mmap(int(file.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be mapped: %w", path, err)
	}
	s.files[path] = pages
	return pages, nil
}
