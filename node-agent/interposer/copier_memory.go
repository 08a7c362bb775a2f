package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"
)

// pageTable has a sum of each page as the other side has it; of one that it was never sent it has zeroes. Sums are of 64
// bits, keyed by a secret of this process: of a thousand million comparisons one errs with a probability of 1 in 10^10.
type pageTable struct {
	seed    maphash.Seed
	zero    uint64
	regions map[region][]uint64
}

// region is memory of a process that begins at a multiple of regionSize.
type region struct {
	process uint32
	number  uint64
}

func newPageTable() pageTable {
	seed := maphash.MakeSeed()
	return pageTable{seed, maphash.Bytes(seed, make([]byte, pageSize)), map[region][]uint64{}}
}

// sum is 0 for a page of zeroes.
func (t *pageTable) sum(page []byte) uint64 { return maphash.Bytes(t.seed, page) ^ t.zero }

// known returns the sums from an address to the end of its region, to be kept up to date; not for several goroutines.
func (t *pageTable) known(process uint32, address uint64) []uint64 {
	at := region{process, address / regionSize}
	sums, ok := t.regions[at]
	if !ok {
		sums = make([]uint64, regionSize/pageSize)
		t.regions[at] = sums
	}
	return sums[address%regionSize/pageSize:]
}

// frameWriter appends whole frames, for several goroutines.
type frameWriter struct {
	lock    sync.Mutex
	out     io.Writer
	written uint64 // bytes of memory
	limit   uint64 // of what is written
}

func (w *frameWriter) full() bool {
	w.lock.Lock()
	defer w.lock.Unlock()
	return w.written >= w.limit
}

func (w *frameWriter) write(process uint32, address uint64, data []byte) error {
	head := binary.LittleEndian.AppendUint32(nil, process)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(data)))
	head = binary.LittleEndian.AppendUint64(head, address)
	w.lock.Lock()
	defer w.lock.Unlock()
	if _, err := w.out.Write(head); err != nil {
		return err
	}
	w.written += uint64(len(data))
	_, err := w.out.Write(data)
	return err
}

// sysProcessVMReadv has no name in package syscall.
var sysProcessVMReadv = map[string]uintptr{"amd64": 310, "arm64": 270}[runtime.GOARCH]

type ioVector struct {
	base uintptr
	size uintptr
}

// readMemory fills a buffer from a process: process_vm_readv keeps to what the process itself may read, /proc/PID/mem does
// not, but copies twice and a page at a time.
func readMemory(pid int, address uint64, data []byte) error {
	local := ioVector{uintptr(unsafe.Pointer(&data[0])), uintptr(len(data))}
	remote := ioVector{uintptr(address), uintptr(len(data))}
	n, _, errno := syscall.Syscall6(sysProcessVMReadv, uintptr(pid), uintptr(unsafe.Pointer(&local)), 1,
		uintptr(unsafe.Pointer(&remote)), 1, 0)
	runtime.KeepAlive(data)
	if errno == 0 && int(n) == len(data) {
		return nil
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err
	}
	defer memory.Close()
	_, err = memory.ReadAt(data, int64(address))
	return err
}

// include/uapi/linux/fs.h since Linux 6.7: PAGEMAP_SCAN, and what a page may be.
const (
	pagemapScan   = 0xc0606610
	scanFile      = 1 << 2 // or shared memory
	scanPresent   = 1 << 3
	scanSwapped   = 1 << 4
	scanZero      = 1 << 5
	scanRegions   = 1024
	scanArgsBytes = 96
)

type scanArgs struct {
	size, flags, start, end, walkEnd, regions, count, maxPages, inverted, mask, anyOf, wanted uint64
}

type scanRegion struct{ start, end, categories uint64 }

// Entries of /proc/PID/pagemap.
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61 // or of shared memory
)

// largestMapping is what is searched without PAGEMAP_SCAN. What is larger is mostly empty, and waits for the last round.
const largestMapping = 64 << 30

// anonymous returns the pages that a process has to itself and that are no file's, as they are right now.
func anonymous(pid int) ([]span, error) {
	mappings, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	defer pagemap.Close()
	var spans []span
	for _, it := range privateMappings(string(mappings)) {
		if spans, err = appendPresent(spans, pagemap, it); err != nil {
			return nil, err
		}
	}
	return spans, nil
}

// privateMappings returns the private mappings in which a process has anonymous pages, by its smaps.
func privateMappings(smaps string) []span {
	var found []span
	var it span
	private, anonymous := false, false
	take := func() {
		if private && anonymous {
			found = append(found, it)
		}
		private, anonymous = false, false
	}
	for line := range strings.Lines(smaps) {
		words := strings.Fields(line)
		switch {
		case len(words) >= 5 && len(words[1]) == 4 && strings.Contains(words[0], "-"):
			take()
			start, end, _ := strings.Cut(words[0], "-")
			first, errA := strconv.ParseUint(start, 16, 64)
			last, errB := strconv.ParseUint(end, 16, 64)
			special := len(words) > 5 && (words[5] == "[vvar]" || words[5] == "[vdso]" || words[5] == "[vsyscall]")
			it, private = span{first, last}, words[1][3] == 'p' && errA == nil && errB == nil && !special
		case len(words) >= 2 && (words[0] == "Anonymous:" || words[0] == "Swap:"):
			anonymous = anonymous || words[1] != "0"
		}
	}
	take()
	return found
}

// appendPresent adds the anonymous pages of a mapping, neighbours together.
func appendPresent(spans []span, pagemap *os.File, mapping span) ([]span, error) {
	found, err := appendScanned(spans, pagemap, mapping)
	if errors.Is(err, syscall.ENOTTY) {
		return appendListed(spans, pagemap, mapping)
	}
	return found, err
}

func appendScanned(spans []span, pagemap *os.File, mapping span) ([]span, error) {
	regions := make([]scanRegion, scanRegions)
	for at := mapping.start; at < mapping.end; {
		args := scanArgs{
			size: scanArgsBytes, start: at, end: mapping.end, regions: uint64(uintptr(unsafe.Pointer(&regions[0]))), count: scanRegions,
			inverted: scanFile | scanZero, mask: scanFile | scanZero, anyOf: scanPresent | scanSwapped, wanted: scanPresent,
		}
		n, _, errno := syscall.Syscall(syscall.SYS_IOCTL, pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(&args)))
		runtime.KeepAlive(regions)
		if errno == syscall.ESRCH {
			return spans, nil // the process has ended
		}
		if errno != 0 {
			return spans, errno
		}
		for _, it := range regions[:n] {
			spans = appendSpan(spans, it.start, it.end)
		}
		if args.walkEnd <= at {
			return spans, nil
		}
		at = args.walkEnd
	}
	return spans, nil
}

func appendListed(spans []span, pagemap *os.File, mapping span) ([]span, error) {
	if mapping.end-mapping.start > largestMapping {
		return spans, nil
	}
	raw := make([]byte, 1<<19)
	for at := mapping.start; at < mapping.end; {
		want := min(uint64(len(raw)), (mapping.end-at)/pageSize*8)
		n, err := pagemap.ReadAt(raw[:want], int64(at/pageSize*8))
		if n < 8 {
			if err == io.EOF || errors.Is(err, syscall.ESRCH) {
				return spans, nil // the process has ended
			}
			return spans, err
		}
		for i := 0; i+8 <= n; i, at = i+8, at+pageSize {
			entry := binary.NativeEndian.Uint64(raw[i:])
			if entry&(pagePresent|pageSwapped) != 0 && entry&pageOfFile == 0 {
				spans = appendSpan(spans, at, at+pageSize)
			}
		}
	}
	return spans, nil
}

// appendSpan adds memory behind all that is there.
func appendSpan(spans []span, start, end uint64) []span {
	if last := len(spans) - 1; last >= 0 && spans[last].end == start {
		spans[last].end = end
		return spans
	}
	return append(spans, span{start, end})
}
