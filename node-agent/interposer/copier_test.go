package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// copyRoom is a process with memory, here this one, and what the other side has of it.
type copyRoom struct {
	t      *testing.T
	pid    int
	memory []byte
	held   []byte
	in     *io.PipeWriter
	out    io.Reader
}

const copyProcess = 7

func newCopyRoom(t *testing.T, pages int) *copyRoom {
	memory, err := syscall.Mmap(-1, 0, pages*pageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	must(t, err)
	t.Cleanup(func() { _ = syscall.Munmap(memory) })
	requests, in := io.Pipe()
	out, answers := io.Pipe()
	go func() {
		runCopier(requests, answers)
		answers.Close()
	}()
	t.Cleanup(func() { in.Close() })
	return &copyRoom{t, os.Getpid(), memory, make([]byte, len(memory)), in, out}
}

func (r *copyRoom) address() uint64 { return uint64(uintptr(unsafe.Pointer(&r.memory[0]))) }

// round asks for one, keeps what comes, and returns how many pages of the room's came.
func (r *copyRoom) round(images string) int {
	r.t.Helper()
	line, err := json.Marshal(copyRound{map[uint32]int{copyProcess: r.pid}, images})
	must(r.t, err)
	_, err = r.in.Write(append(line, '\n'))
	must(r.t, err)
	came, head := 0, make([]byte, copyHeadBytes)
	for {
		_, err := io.ReadFull(r.out, head)
		must(r.t, err)
		process, length := binary.LittleEndian.Uint32(head), binary.LittleEndian.Uint32(head[4:])
		address := binary.LittleEndian.Uint64(head[8:])
		if process == 0 {
			return came
		}
		data := make([]byte, length)
		_, err = io.ReadFull(r.out, data)
		must(r.t, err)
		if at := address - r.address(); address >= r.address() && at < uint64(len(r.held)) {
			came += copy(r.held[at:], data) / pageSize
		}
	}
}

// left writes the images of a dump that has left all of the room's memory in the process.
func (r *copyRoom) left(pages uint64) string {
	dir := r.t.TempDir()
	start := r.address()
	writeImages(r.t, dir, [][2]uint64{{start, start + uint64(len(r.memory))}}, [][]byte{pagemapEntry(start, pages, entryLazy)}, nil)
	return dir
}

func TestEachRoundBringsWhatIsDifferent(t *testing.T) {
	r := newCopyRoom(t, 700)
	fill := func(page int) { copy(r.memory[page*pageSize:], bytes.Repeat([]byte{byte(page%255 + 1)}, pageSize)) }
	for page := range 600 {
		fill(page)
	}
	if came := r.round(""); came != 600 || !bytes.Equal(r.held, r.memory) {
		t.Fatalf("%d of 600 pages came", came)
	}
	if came := r.round(""); came != 0 {
		t.Fatalf("%d pages came that had not changed", came)
	}
	r.memory[5*pageSize+17]++
	r.memory[299*pageSize]++
	clear(r.memory[300*pageSize : 301*pageSize])
	fill(650)
	if came := r.round(""); came != 4 || !bytes.Equal(r.held, r.memory) {
		t.Fatalf("%d of 4 pages came", came)
	}
	r.memory[699*pageSize] = 1
	if came := r.round(r.left(700)); came != 1 || !bytes.Equal(r.held, r.memory) {
		t.Fatalf("%d pages came in the end instead of 1", came)
	}
}

func TestWhateverWasWrittenInBetweenTheCopyIsExact(t *testing.T) {
	r := newCopyRoom(t, 3000)
	random := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		for range 400 {
			at := random.IntN(len(r.memory) - 64)
			copy(r.memory[at:], []byte{byte(random.Uint32()), byte(random.Uint32())})
		}
		for range random.IntN(3) {
			at := random.IntN(2900) * pageSize
			must(t, syscall.Madvise(r.memory[at:at+50*pageSize], syscall.MADV_DONTNEED))
		}
		r.round("")
	}
	r.round(r.left(3000))
	if !bytes.Equal(r.held, r.memory) {
		t.Fatal("the copy is not what the process has")
	}
}

func TestWhatTheProcessMayNotTouchIsCopiedToo(t *testing.T) {
	r := newCopyRoom(t, 20)
	copy(r.memory, bytes.Repeat([]byte("kept"), 20*pageSize/4))
	must(t, syscall.Mprotect(r.memory[4*pageSize:9*pageSize], syscall.PROT_NONE))
	r.round(r.left(20))
	must(t, syscall.Mprotect(r.memory, syscall.PROT_READ|syscall.PROT_WRITE))
	if !bytes.Equal(r.held, r.memory) {
		t.Fatal("protected pages are missing")
	}
}

func TestMemoryOfAnotherProcessIsFound(t *testing.T) {
	child := exec.Command("sleep", "60")
	must(t, child.Start())
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	r := newCopyRoom(t, 1)
	r.pid = child.Process.Pid
	spans, err := anonymous(r.pid)
	if must(t, err); len(spans) == 0 {
		t.Fatal("it has no memory")
	}
	r.round("")
}

func TestAProcessThatEndedMeanwhileHasNothing(t *testing.T) {
	r := newCopyRoom(t, 1)
	r.pid = 1 << 22
	if came := r.round(""); came != 0 {
		t.Fatal(came)
	}
}

func TestWhatStandsStillMustBeThere(t *testing.T) {
	var out bytes.Buffer
	r := newCopyRoom(t, 4)
	images := r.left(4)
	line, _ := json.Marshal(copyRound{map[uint32]int{copyProcess: 1 << 22}, images})
	if runCopier(bytes.NewReader(append(line, '\n')), &out) == 0 {
		t.Fatal("memory of a process that is gone was copied")
	}
	if runCopier(strings.NewReader("no request\n"), &out) == 0 {
		t.Fatal("nonsense was understood")
	}
}

func TestMappingsAreTakenFromSmaps(t *testing.T) {
	smaps := `00400000-00401000 r-xp 00000000 fe:00 12 /bin/x
Anonymous:             0 kB
Swap:                  0 kB
00600000-00700000 rw-p 00000000 00:00 0
Anonymous:            12 kB
00700000-00800000 ---p 00000000 00:00 0
Anonymous:             0 kB
Swap:                  4 kB
00800000-00900000 rw-s 00000000 00:01 5 /dev/zero (deleted)
Anonymous:             4 kB
7fff0000-7fff1000 r--p 00000000 00:00 0 [vvar]
Anonymous:             4 kB
`
	found := privateMappings(smaps)
	if len(found) != 2 || found[0] != (span{0x600000, 0x700000}) || found[1] != (span{0x700000, 0x800000}) {
		t.Fatalf("%#x", found)
	}
}

func TestBothWaysFindTheSamePages(t *testing.T) {
	r := newCopyRoom(t, 4000)
	for _, page := range []int{0, 1, 2, 77, 1500, 1501, 3999} {
		r.memory[page*pageSize] = 1
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	must(t, err)
	defer pagemap.Close()
	all := span{r.address(), r.address() + uint64(len(r.memory))}
	listed, err := appendListed(nil, pagemap, all)
	must(t, err)
	want := []span{{0, 3}, {77, 78}, {1500, 1502}, {3999, 4000}}
	for i := range want {
		want[i] = span{all.start + want[i].start*pageSize, all.start + want[i].end*pageSize}
	}
	if !slices.Equal(listed, want) {
		t.Fatalf("%#x", listed)
	}
	scanned, err := appendScanned(nil, pagemap, all)
	if errors.Is(err, syscall.ENOTTY) {
		t.Log("this kernel has no PAGEMAP_SCAN")
		return
	}
	if must(t, err); !slices.Equal(scanned, want) {
		t.Fatalf("%#x", scanned)
	}
}
