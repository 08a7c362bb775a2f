package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

const pagedPid = 7 // as the images count

// message encodes a protobuf message of numbers; a field with a length follows as bytes.
func message(fields ...any) []byte {
	var out []byte
	for i := 0; i < len(fields); i += 2 {
		number := uint64(fields[i].(int))
		switch value := fields[i+1].(type) {
		case uint64:
			out = binary.AppendUvarint(binary.AppendUvarint(out, number<<3), value)
		case []byte:
			out = binary.AppendUvarint(binary.AppendUvarint(out, number<<3|2), uint64(len(value)))
			out = append(out, value...)
		}
	}
	return out
}

func image(magic uint32, messages ...[]byte) []byte {
	out := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, imageMagic), magic)
	for _, it := range messages {
		out = append(binary.LittleEndian.AppendUint32(out, uint32(len(it))), it...)
	}
	return out
}

func pagemapEntry(start, pages, flags uint64) []byte {
	return message(1, start, 2, pages, 4, flags, 5, pages)
}

func writeImages(t *testing.T, dir string, mappings [][2]uint64, entries [][]byte, pages []byte) {
	t.Helper()
	memory := message(1, uint64(0x400000), 12, uint64(1))
	for _, m := range mappings {
		memory = append(memory, message(14, message(1, m[0], 2, m[1], 3, uint64(0)))...)
	}
	must(t, os.WriteFile(fmt.Sprintf("%s/mm-%d.img", dir, pagedPid), image(memoryMagic, memory), 0o600))
	all := append([][]byte{message(1, uint64(3))}, entries...)
	must(t, os.WriteFile(fmt.Sprintf("%s/pagemap-%d.img", dir, pagedPid), image(pagemapMagic, all...), 0o600))
	must(t, os.WriteFile(dir+"/pages-3.img", pages, 0o600))
}

func TestLazyMemoryIsReadAsCriuWritesIt(t *testing.T) {
	dir := t.TempDir()
	mappings := [][2]uint64{{0x10000, 0x14000}, {0x14000, 0x20000}, {0x30000, 0x31000}}
	entries := [][]byte{
		pagemapEntry(0x10000, 1, entryPresent),           // restored at once
		pagemapEntry(0x12000, 4, entryPresent|entryLazy), // over the border at 0x14000
		pagemapEntry(0x18000, 2, entryLazy),              // in the source's process only
		pagemapEntry(0x30000, 1, entryPresent|entryLazy),
	}
	writeImages(t, dir, mappings, entries, make([]byte, 6*pageSize))
	memory, err := readLazyMemory(dir, pagedPid)
	must(t, err)
	want := missing{
		{0x12000, 0x14000, pageSize, false}, {0x14000, 0x16000, 3 * pageSize, false}, {0x18000, 0x1a000, 0x18000, true},
		{0x30000, 0x31000, 5 * pageSize, false},
	}
	if fmt.Sprint(memory.pieces) != fmt.Sprint(want) || memory.pages != dir+"/pages-3.img" {
		t.Fatal(memory)
	}
}

func TestLazyMemoryThatIsNotAsItSaysIsRefused(t *testing.T) {
	mapping := [][2]uint64{{0x10000, 0x20000}}
	for name, entries := range map[string][][]byte{
		"an earlier checkpoint": {pagemapEntry(0x10000, 1, entryPresent|entryParent)},
		"more than the file":    {pagemapEntry(0x10000, 9, entryPresent|entryLazy)},
		"out of order":          {pagemapEntry(0x12000, 1, entryPresent), pagemapEntry(0x11000, 1, entryPresent)},
		"no page's address":     {pagemapEntry(0x10001, 1, entryPresent)},
		"endless":               {pagemapEntry(0x10000, 1<<60, entryPresent)},
		"no message":            {[]byte{0xff}},
	} {
		dir := t.TempDir()
		writeImages(t, dir, mapping, entries, make([]byte, 2*pageSize))
		if memory, err := readLazyMemory(dir, pagedPid); err == nil {
			t.Errorf("%s: %v", name, memory)
		}
	}
}

func FuzzLazyMemory(f *testing.F) {
	f.Add(image(pagemapMagic, message(1, uint64(3)), pagemapEntry(0x10000, 1, entryPresent|entryLazy)), image(memoryMagic, message(14, message(1, uint64(0x10000), 2, uint64(0x20000)))))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, pagemap, memory []byte) {
		must(t, os.WriteFile(fmt.Sprintf("%s/mm-%d.img", dir, pagedPid), memory, 0o600))
		must(t, os.WriteFile(fmt.Sprintf("%s/pagemap-%d.img", dir, pagedPid), pagemap, 0o600))
		must(t, os.WriteFile(dir+"/pages-3.img", make([]byte, 2*pageSize), 0o600))
		found, err := readLazyMemory(dir, pagedPid)
		if err != nil {
			return
		}
		for _, it := range found.pieces {
			if it.start >= it.end || it.offset < 0 || !it.remote && it.offset+int64(it.end-it.start) > 2*pageSize {
				t.Fatal(found)
			}
		}
	})
}

func TestMissingMemoryIsCutAndMoved(t *testing.T) {
	m := missing{{0x1000, 0x5000, 0, false}, {0x8000, 0x9000, 0x4000, false}}
	if taken := m.cut(0x2000, 0x3000); fmt.Sprint(taken) != fmt.Sprint(missing{{0x2000, 0x3000, 0x1000, false}}) {
		t.Fatal(taken)
	}
	m.move(0x3000, 0x20000, 0x2000)
	want := missing{{0x1000, 0x2000, 0, false}, {0x8000, 0x9000, 0x4000, false}, {0x20000, 0x22000, 0x2000, false}}
	if fmt.Sprint(m) != fmt.Sprint(want) {
		t.Fatal(m)
	}
	if i, found := m.find(0x21000); i != 2 || !found {
		t.Fatal(i, found)
	}
	if i, found := m.find(0x3000); i != 1 || found {
		t.Fatal(i, found)
	}
	if taken := m.cut(0, 1<<40); len(taken) != 3 || len(m) != 0 {
		t.Fatal(taken, m)
	}
}

// paging is a pager of its own processes that fills this process's memory: the test plays CRIU.
type paging struct {
	t      *testing.T
	l      *lab
	guard  *exec.Cmd
	criu   int
	uffd   int
	memory []byte
	pages  []byte
}

const pagedPages = 2048

func startPaging(t *testing.T) *paging {
	t.Helper()
	return startPagingOf(t, entryPresent|entryLazy)
}

func startPagingOf(t *testing.T, flags uint64) *paging {
	t.Helper()
	l := newLab(t)
	l.ticket("resuming")
	must(t, os.MkdirAll(l.images+"/work", 0o700))
	p := &paging{t: t, l: l, pages: make([]byte, pagedPages*pageSize)}
	for i := range pagedPages {
		binary.NativeEndian.PutUint64(p.pages[i*pageSize:], uint64(i)+1)
	}
	var err error
	p.memory, err = syscall.Mmap(-1, 0, (pagedPages+1)*pageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	must(t, err)
	first := p.address(0)
	writeImages(t, l.images+"/images", [][2]uint64{{first, first + uint64(len(p.memory))}},
		[][]byte{pagemapEntry(first, pagedPages, flags)}, p.pages)
	p.register()
	path := filepath.Join(l.images, "work", "lazy-pages.socket")
	listener, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, syscall.Bind(listener, &syscall.SockaddrUnix{Name: path}))
	must(t, syscall.Listen(listener, 1))
	file := os.NewFile(uintptr(listener), "listener")
	p.guard = l.command(nil, pagerCommand, l.images, l.ticketDir(), "app", strconv.Itoa(os.Getpid()))
	p.guard.ExtraFiles = []*os.File{file}
	must(t, p.guard.Start())
	must(t, file.Close())
	stat, err := readStat(p.guard.Process.Pid)
	must(t, err)
	must(t, os.WriteFile(fillingFile(l.ticketDir(), "app"), fmt.Appendf(nil, `{"pid":%d,"start":%d}`, p.guard.Process.Pid, stat.start), 0o600))
	p.criu, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, syscall.Connect(p.criu, &syscall.SockaddrUnix{Name: path}))
	t.Cleanup(func() {
		syscall.Close(p.criu)
		p.guard.Process.Kill()
		for _, pid := range descendants(p.guard.Process.Pid) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		p.guard.Wait()
		// The memory stays: what a test has moved away may be somebody else's by now.
	})
	return p
}

func (p *paging) address(page int) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p.memory)))) + uint64(page*pageSize)
}

// register does what CRIU's restorer does (criu/pie/restorer.c, criu/uffd.c).
func (p *paging) register() {
	const number, features, api, apiIoctl, registerIoctl, registerMissing = 323, 2 | 4 | 8 | 64, 0xaa, 0xc018aa3f, 0xc020aa00, 1
	fd, _, errno := syscall.Syscall(number, syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0, 0)
	if errno != 0 {
		p.t.Fatalf("userfaultfd: %v", errno)
	}
	p.uffd = int(fd)
	p.ioctl(apiIoctl, [4]uint64{api, features})
	p.ioctl(registerIoctl, [4]uint64{p.address(0), uint64(len(p.memory)), registerMissing})
}

func (p *paging) ioctl(number uintptr, request [4]uint64) {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(p.uffd), number, uintptr(unsafe.Pointer(&request))); errno != 0 {
		p.t.Fatalf("ioctl %#x: %v", number, errno)
	}
}

// hand gives the process's userfaultfd away, as CRIU does, and keeps none.
func (p *paging) hand() {
	p.say(pagedPid)
	must(p.t, syscall.Sendmsg(p.criu, []byte{0}, syscall.UnixRights(p.uffd), nil, 0))
	must(p.t, syscall.Close(p.uffd))
}

func (p *paging) say(word uint32) {
	_, err := syscall.Write(p.criu, binary.NativeEndian.AppendUint32(nil, word))
	must(p.t, err)
}

func (p *paging) check(page int, want uint64) {
	p.t.Helper()
	if got := binary.NativeEndian.Uint64(p.memory[page*pageSize:]); got != want {
		p.t.Errorf("page %d holds %d, not %d", page, got, want)
	}
}

const movedPages = 512

// move moves so many pages from that one on to another place, which it returns.
func (p *paging) move(page int) []byte {
	p.t.Helper()
	const mayMove, fixed = 1, 2
	place, err := syscall.Mmap(-1, 0, movedPages*pageSize, syscall.PROT_NONE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	must(p.t, err)
	target := uintptr(unsafe.Pointer(unsafe.SliceData(place)))
	moved, _, errno := syscall.Syscall6(syscall.SYS_MREMAP, uintptr(p.address(page)), movedPages*pageSize, movedPages*pageSize, mayMove|fixed, target, 0)
	if errno != 0 || moved != target {
		p.t.Fatal(errno)
	}
	return place
}

// checkMoved checks every page when those from `first` on are at another place, and 100 to 199 were dropped.
func (p *paging) checkMoved(first int, place []byte) {
	p.t.Helper()
	for page := range pagedPages {
		switch {
		case page >= 100 && page < 200:
			p.check(page, 0)
		case page >= first && page < first+movedPages:
			if got := binary.NativeEndian.Uint64(place[(page-first)*pageSize:]); got != uint64(page)+1 {
				p.t.Errorf("page %d, which moved, holds %d", page, got)
			}
		default:
			p.check(page, uint64(page)+1)
		}
	}
	must(p.t, syscall.Munmap(place))
}

func (p *paging) ended() int {
	p.t.Helper()
	done := make(chan error, 1)
	go func() { done <- p.guard.Wait() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		p.t.Fatal("the pager does not end")
	}
	if exists(fillingFile(p.l.ticketDir(), "app")) {
		p.t.Error("it says that it still fills in")
	}
	return p.guard.ProcessState.ExitCode()
}

func TestPagerBringsWhatSomebodyWaitsForAndThenTheRest(t *testing.T) {
	p := startPaging(t)
	p.hand()
	p.check(1000, 1001) // before the restore is finished: nothing else comes by itself
	p.check(pagedPages, 0)
	p.say(restoreFinished)
	if code := p.ended(); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.l.read("run/images/m1/app/hook.log"))
	}
	for page := range pagedPages {
		p.check(page, uint64(page)+1)
	}
}

func TestPagerFollowsWhatTheProcessDoesWithItsMemory(t *testing.T) {
	p := startPaging(t)
	p.hand()
	must(t, syscall.Madvise(p.memory[100*pageSize:200*pageSize], syscall.MADV_DONTNEED))
	must(t, syscall.Mprotect(p.memory[300*pageSize:310*pageSize], syscall.PROT_READ)) // splits the mapping
	place := p.move(512)
	p.say(restoreFinished)
	if code := p.ended(); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.l.read("run/images/m1/app/hook.log"))
	}
	p.checkMoved(512, place)
}

func TestContainerDiesWithThePagerBeforeItReadsZeroes(t *testing.T) {
	p := startPaging(t)
	tree := exec.Command("sleep", "1000")
	must(t, tree.Start())
	t.Cleanup(func() { tree.Process.Kill() })
	must(t, writeTree(p.l.ticketDir(), "app", "c1", tree.Process.Pid))
	p.hand()
	p.check(5, 6)
	servers := descendants(p.guard.Process.Pid)
	if len(servers) != 1 {
		t.Fatal(servers)
	}
	must(t, syscall.Kill(servers[0], syscall.SIGKILL))
	go tree.Wait()
	if code := p.ended(); code == 0 {
		t.Fatal("the guard says that all is well")
	}
	eventually(t, "the container is dead", func() bool { return !alive(tree.Process.Pid) })
}

func TestPagerSaysWhyItCannotWork(t *testing.T) {
	p := startPaging(t)
	must(t, os.Remove(filepath.Join(p.l.images, "images/pages-3.img")))
	p.hand()
	if code := p.ended(); code == 0 {
		t.Fatal("it says that all is well")
	}
	if said := p.l.read("run/images/m1/app/hook.log"); !bytes.Contains([]byte(said), []byte("pages-3.img")) {
		t.Fatal(said)
	}
}

func TestPagerEndsWithARestoreThatNeverConnects(t *testing.T) {
	l := newLab(t)
	must(t, os.MkdirAll(l.images+"/work", 0o700))
	l.ticket("pending")
	parent := exec.Command("true")
	must(t, parent.Run())
	listener, err := os.Open(os.DevNull)
	must(t, err)
	guard := l.command(nil, pagerCommand, l.images, l.ticketDir(), "app", strconv.Itoa(parent.Process.Pid))
	guard.ExtraFiles = []*os.File{listener}
	if err := guard.Run(); err != nil {
		t.Fatal(err, l.read("run/images/m1/app/hook.log"))
	}
}
