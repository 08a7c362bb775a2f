package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
)

// copierCommand copies the memory of running processes into a log, in rounds: the first round writes all that is not zero,
// each later one what is not as it was written last. When the processes stand still a last round makes the copy exact.
// Nothing is injected into them and nothing about them is believed: a page is compared by its content, so it does not matter
// who wrote it, forked, or mapped something else there.
//
//	runc-migratable container-migration-copy LOG
//
// A round is asked for by a line on the standard input, `copyRound`, and answered by one, `copyReport`, when it is in the log.
const copierCommand = "container-migration-copy"

// memoryLog is its name beside the images: frames, one after another. Of two that hold a page the later one counts; a page
// that none holds is zeroes. A frame is process uint32 (as the images count), length uint32 and address uint64,
// little-endian, and as many bytes of memory. The last one is of process 0: without it the log is not whole.
const memoryLog = "memory.log"

const (
	frameHeadBytes = 16
	copyBytes      = 1 << 20 // looked at, and written, at once
	regionSize     = 2 << 20
)

// copyRound says what to copy.
type copyRound struct {
	// Processes by the pids that the images count: their pids here.
	Processes map[uint32]int `json:"processes"`
	// Still: the processes stand still, and CRIU may be at work on them: what it does not write to is exact from now on.
	Still bool `json:"still,omitempty"`
	// Images is CRIU's directory when the processes are dumped, and still stand still: what it left in them, and is not
	// exact yet, is copied, and the log is whole. Before, all private anonymous memory is.
	Images string `json:"images,omitempty"`
	// Limit is about how many bytes are written at most, for what changes again and again; 0 is no limit.
	Limit uint64 `json:"limit,omitempty"`
}

// copyReport says how many bytes of memory a round looked at, and how many it found to be different.
type copyReport struct {
	Looked  uint64 `json:"looked"`
	Written uint64 `json:"written"`
}

// copier knows what is in the log.
type copier struct {
	find  findMemory
	pages pageTable
	log   *frameWriter
	exact exactMemory
}

// findMemory returns the memory of a process; without what CRIU, or the kernel for the process, may write to while it stands
// still, when that is asked for.
type findMemory func(pid int, quiet bool) ([]span, error)

func runCopier(argv []string, in io.Reader, out io.Writer) int {
	err := errors.New("wants the path of a log")
	if len(argv) == 3 {
		err = copyMemory(argv[2], anonymous, in, out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "container-migration: memory cannot be copied: "+err.Error())
		return 1
	}
	return 0
}

// copyMemory answers one request after another until there are no more.
func copyMemory(path string, find findMemory, in io.Reader, out io.Writer) error {
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c := &copier{find: find, pages: newPageTable(), log: &frameWriter{out: log}}
	requests := bufio.NewReader(in)
	for {
		line, err := requests.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		var asked copyRound
		if err == nil {
			err = json.Unmarshal(line, &asked)
		}
		var report copyReport
		if err == nil {
			report, err = c.round(asked)
		}
		if err == nil {
			err = json.NewEncoder(out).Encode(report)
		}
		if err != nil {
			return err
		}
	}
}

func (c *copier) round(asked copyRound) (copyReport, error) {
	before, looked := c.log.written, uint64(0)
	c.log.limit = before + asked.Limit
	if asked.Limit == 0 {
		c.log.limit = math.MaxUint64
	}
	for process, pid := range asked.Processes {
		spans, err := c.wanted(asked, process, pid)
		if err != nil {
			return copyReport{}, fmt.Errorf("process %d: %w", process, err)
		}
		size, err := c.copy(process, pid, spans, asked)
		if err != nil {
			return copyReport{}, fmt.Errorf("process %d: %w", process, err)
		}
		looked += size
	}
	if asked.Images != "" {
		if err := c.log.write(0, 0, nil); err != nil {
			return copyReport{}, err
		}
	}
	return copyReport{looked, c.log.written - before}, nil
}

// wanted returns the memory that a round looks at.
func (c *copier) wanted(asked copyRound, process uint32, pid int) ([]span, error) {
	if asked.Images != "" {
		left, err := leftByCriu(asked.Images, process)
		return c.exact.rest(process, left), err
	}
	spans, err := c.find(pid, asked.Still)
	if err != nil {
		return nil, nil //nolint:nilerr // it may have ended
	}
	return spans, nil
}

// leftByCriu returns the memory that a dump has left in a process.
func leftByCriu(images string, process uint32) ([]span, error) {
	memory, err := readLeft(images, int(process))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // a zombie has no memory
	}
	var spans []span
	for _, it := range memory.pieces {
		if it.remote {
			spans = append(spans, span{it.start, it.end})
		}
	}
	return spans, err
}

// copy compares the memory of a process with what the other side has and writes what is different. What cannot be read
// is left out before the last round: it may have gone meanwhile.
func (c *copier) copy(process uint32, pid int, spans []span, asked copyRound) (uint64, error) {
	work, looked := make(chan copyPiece, 64), uint64(0)
	var failed errorBox
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			buffer := make([]byte, copyBytes)
			for it := range work {
				if failed.get() != nil {
					continue
				}
				done, err := c.piece(process, pid, it, buffer[:it.end-it.start])
				if asked.Images != "" || done {
					failed.set(err)
				}
				if asked.Still && done {
					c.exact.add(process, it.span)
				}
			}
		})
	}
	for _, it := range spans {
		looked += it.end - it.start
		for at := it.start; at < it.end; {
			end := min(it.end, at&^(copyBytes-1)+copyBytes)
			work <- copyPiece{span{at, end}, c.pages.known(process, at)}
			at = end
		}
	}
	close(work)
	workers.Wait()
	return looked, failed.get()
}

// copyPiece is memory of one region, and what the other side has of it.
type copyPiece struct {
	span
	known []uint64
}

// piece says whether all of it was read and what is different was written.
func (c *copier) piece(process uint32, pid int, it copyPiece, data []byte) (bool, error) {
	if err := readMemory(pid, it.start, data); err != nil {
		return false, err
	}
	known, sums := it.known, make([]uint64, len(data)/pageSize)
	for i := range sums {
		sums[i] = c.pages.sum(data[i*pageSize : (i+1)*pageSize])
	}
	for first := 0; first < len(sums); {
		if sums[first] == known[first] {
			first++
			continue
		}
		last := first + 1
		for last < len(sums) && sums[last] != known[last] {
			last++
		}
		at := it.start + uint64(first*pageSize)
		if c.log.full() {
			return false, nil
		}
		if err := c.log.write(process, at, data[first*pageSize:last*pageSize]); err != nil {
			return true, err
		}
		copy(known[first:last], sums[first:last])
		first = last
	}
	return true, nil
}

// exactMemory is what the log has as it is in processes that stand still; for several goroutines.
type exactMemory struct {
	lock  sync.Mutex
	spans map[uint32][]span
}

func (x *exactMemory) add(process uint32, it span) {
	x.lock.Lock()
	defer x.lock.Unlock()
	if x.spans == nil {
		x.spans = map[uint32][]span{}
	}
	x.spans[process] = append(x.spans[process], it)
}

// rest returns what is not exact of memory in the order of its addresses.
func (x *exactMemory) rest(process uint32, memory []span) []span {
	known := x.spans[process]
	slices.SortFunc(known, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	var rest []span
	next := 0
	for _, it := range memory {
		for at := it.start; at < it.end; {
			for next < len(known) && known[next].end <= at {
				next++
			}
			end := it.end
			if next < len(known) {
				end = min(end, max(known[next].start, at))
			}
			if end > at {
				rest = append(rest, span{at, end})
				at = end
			} else {
				at = min(it.end, known[next].end)
			}
		}
	}
	return rest
}

// errorBox keeps the first error of several goroutines.
type errorBox struct {
	lock sync.Mutex
	err  error
}

func (b *errorBox) get() error {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.err
}

func (b *errorBox) set(err error) {
	b.lock.Lock()
	defer b.lock.Unlock()
	if b.err == nil {
		b.err = err
	}
}
