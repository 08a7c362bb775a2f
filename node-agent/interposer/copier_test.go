package main

import (
	"bufio"
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

// copyRoom is a process with memory, here this one, and the log of its copy.
type copyRoom struct {
	t      *testing.T
	pid    int
	memory []byte
	dir    string
	limit  uint64
	in     *io.PipeWriter
	out    *bufio.Reader
}

const copyProcess = 7

func newCopyRoom(t *testing.T, pages int) *copyRoom {
	memory, err := syscall.Mmap(-1, 0, pages*pageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	must(t, err)
	t.Cleanup(func() { _ = syscall.Munmap(memory) })
	requests, in := io.Pipe()
	out, answers := io.Pipe()
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/images", 0o700))
	room := span{uint64(uintptr(unsafe.Pointer(&memory[0]))), uint64(uintptr(unsafe.Pointer(&memory[0]))) + uint64(len(memory))}
	find := func(int) ([]span, error) { // this process would copy its own copies
		pagemap, err := os.Open("/proc/self/pagemap")
		if err != nil {
			return nil, err
		}
		defer pagemap.Close()
		return appendPresent(nil, pagemap, room)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = copyMemory(dir+"/"+memoryLog, find, requests, answers)
		answers.Close()
	}()
	t.Cleanup(func() {
		in.Close()
		<-ended // or it would make its log when the directory is just removed
	})
	return &copyRoom{t, os.Getpid(), memory, dir, 0, in, bufio.NewReader(out)}
}

func (r *copyRoom) address() uint64 { return uint64(uintptr(unsafe.Pointer(&r.memory[0]))) }

// round asks for one and returns how many pages of the room's came into the log.
func (r *copyRoom) round(images string) int {
	r.t.Helper()
	before := r.log()
	line, err := json.Marshal(copyRound{map[uint32]int{copyProcess: r.pid}, images, r.limit})
	must(r.t, err)
	_, err = r.in.Write(append(line, '\n'))
	must(r.t, err)
	answer, err := r.out.ReadBytes('\n')
	must(r.t, err)
	var report copyReport
	must(r.t, json.Unmarshal(answer, &report))
	came := 0
	for log := r.log()[len(before):]; len(log) > 0; {
		length, address := binary.LittleEndian.Uint32(log[4:]), binary.LittleEndian.Uint64(log[8:])
		if address >= r.address() && address < r.address()+uint64(len(r.memory)) {
			came += int(length) / pageSize
		}
		log = log[frameHeadBytes+length:]
	}
	return came
}

func (r *copyRoom) log() []byte {
	data, err := os.ReadFile(r.dir + "/" + memoryLog)
	if !errors.Is(err, os.ErrNotExist) {
		must(r.t, err)
	}
	return data
}

// held returns the room's memory as a pager would fill it in.
func (r *copyRoom) held() []byte {
	r.t.Helper()
	memory, err := readLazyMemory(r.dir+"/images", copyProcess)
	must(r.t, err)
	held, log := make([]byte, len(r.memory)), r.log()
	for _, it := range memory.pieces {
		copy(held[it.start-r.address():], log[it.offset:it.offset+int64(it.end-it.start)])
	}
	return held
}

// left writes the images of a dump that has left all of the room's memory in the process.
func (r *copyRoom) left(pages uint64) string {
	dir, start := r.dir+"/images", r.address()
	writeImages(r.t, dir, [][2]uint64{{start, start + uint64(len(r.memory))}}, [][]byte{pagemapEntry(start, pages, entryLazy)}, nil)
	return dir
}

func TestEachRoundBringsWhatIsDifferent(t *testing.T) {
	r := newCopyRoom(t, 700)
	fill := func(page int) { copy(r.memory[page*pageSize:], bytes.Repeat([]byte{byte(page%255 + 1)}, pageSize)) }
	for page := range 600 {
		fill(page)
	}
	if came := r.round(""); came != 600 {
		t.Fatalf("%d of 600 pages came", came)
	}
	if came := r.round(""); came != 0 {
		t.Fatalf("%d pages came that had not changed", came)
	}
	r.memory[5*pageSize+17]++
	r.memory[299*pageSize]++
	clear(r.memory[300*pageSize : 301*pageSize])
	fill(650)
	if came := r.round(""); came != 4 {
		t.Fatalf("%d of 4 pages came", came)
	}
	r.memory[699*pageSize] = 1
	if came := r.round(r.left(700)); came != 1 || !bytes.Equal(r.held(), r.memory) {
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
	if !bytes.Equal(r.held(), r.memory) {
		t.Fatal("the copy is not what the process has")
	}
}

func TestARoundWithALimitLeavesTheRestForALaterOne(t *testing.T) {
	r := newCopyRoom(t, 2000)
	for page := range 2000 {
		r.memory[page*pageSize] = byte(page%255 + 1)
	}
	r.limit = 400 * pageSize
	if came := r.round(""); came < 400 || came > 1200 {
		t.Fatalf("%d pages came where 400 were allowed, and a piece for each worker", came)
	}
	r.limit = 0
	r.round(r.left(2000))
	if !bytes.Equal(r.held(), r.memory) {
		t.Fatal("what was left out in one round was forgotten")
	}
}

func TestWhatTheProcessMayNotTouchIsCopiedToo(t *testing.T) {
	r := newCopyRoom(t, 20)
	copy(r.memory, bytes.Repeat([]byte("kept"), 20*pageSize/4))
	must(t, syscall.Mprotect(r.memory[4*pageSize:9*pageSize], syscall.PROT_NONE))
	r.round(r.left(20))
	must(t, syscall.Mprotect(r.memory, syscall.PROT_READ|syscall.PROT_WRITE))
	if !bytes.Equal(r.held(), r.memory) {
		t.Fatal("protected pages are missing")
	}
}

func TestMemoryOfAnotherProcessIsCopied(t *testing.T) {
	child := exec.Command("sleep", "60")
	must(t, child.Start())
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	line, _ := json.Marshal(copyRound{Processes: map[uint32]int{1: child.Process.Pid, 2: 1 << 22}})
	var out bytes.Buffer
	log := t.TempDir() + "/log"
	if code := runCopier([]string{"", copierCommand, log}, bytes.NewReader(append(line, '\n')), &out); code != 0 {
		t.Fatal(code)
	}
	var report copyReport
	must(t, json.Unmarshal(out.Bytes(), &report))
	if info, err := os.Stat(log); err != nil || report.Written == 0 || uint64(info.Size()) < report.Written {
		t.Fatal(report, err)
	}
}

func TestWhatStandsStillMustBeThere(t *testing.T) {
	var out bytes.Buffer
	r := newCopyRoom(t, 4)
	line, _ := json.Marshal(copyRound{Processes: map[uint32]int{copyProcess: 1 << 22}, Images: r.left(4)})
	if copyMemory(t.TempDir()+"/log", anonymous, bytes.NewReader(append(line, '\n')), &out) == nil {
		t.Fatal("memory of a process that is gone was copied")
	}
	if copyMemory(t.TempDir()+"/log", anonymous, strings.NewReader("no request\n"), &out) == nil {
		t.Fatal("nonsense was understood")
	}
	if copyMemory(r.dir+"/images/mm-7.img", anonymous, strings.NewReader(""), &out) == nil {
		t.Fatal("a file that was there was taken for a new log")
	}
}

// TestALogThatIsNotWholeIsNone: what is missing would be read as zeroes.
func TestALogThatIsNotWholeIsNone(t *testing.T) {
	r := newCopyRoom(t, 8)
	copy(r.memory, bytes.Repeat([]byte("kept"), len(r.memory)/4))
	r.round("")
	images := r.left(8)
	if _, err := readLazyMemory(images, copyProcess); err == nil {
		t.Fatal("without its last round it was taken for whole")
	}
	r.memory[0]++
	r.round(images)
	whole := r.log()
	for _, size := range []int{0, 8, frameHeadBytes, len(whole) - 1, len(whole) - frameHeadBytes, len(whole) - frameHeadBytes - 1} {
		must(t, os.WriteFile(r.dir+"/"+memoryLog, whole[:size], 0o600))
		if _, err := readLazyMemory(images, copyProcess); err == nil {
			t.Fatalf("%d of %d bytes were taken for all", size, len(whole))
		}
	}
	must(t, os.WriteFile(r.dir+"/"+memoryLog, append(slices.Clone(whole), 0), 0o600))
	if _, err := readLazyMemory(images, copyProcess); err == nil {
		t.Fatal("what comes behind the last frame was overlooked")
	}
	must(t, os.WriteFile(r.dir+"/"+memoryLog, whole, 0o600))
	if !bytes.Equal(r.held(), r.memory) {
		t.Fatal("the whole log is not what the process has")
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
