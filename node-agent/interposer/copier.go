package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
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
	// Images is CRIU's directory when the processes stand still and are dumped: what it left in them is copied, and the log
	// is whole. Before, all private anonymous memory is.
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
	find  func(pid int) ([]span, error) // the memory of a running process
	pages pageTable
	log   *frameWriter
}

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
func copyMemory(path string, find func(pid int) ([]span, error), in io.Reader, out io.Writer) error {
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
	still := asked.Images != ""
	for process, pid := range asked.Processes {
		var spans []span
		var err error
		if still {
			spans, err = leftByCriu(asked.Images, process)
		} else {
			spans, _ = c.find(pid) // it may have ended
		}
		if err != nil {
			return copyReport{}, fmt.Errorf("process %d: %w", process, err)
		}
		size, err := c.copy(process, pid, spans, still)
		if err != nil {
			return copyReport{}, fmt.Errorf("process %d: %w", process, err)
		}
		looked += size
	}
	if still {
		if err := c.log.write(0, 0, nil); err != nil {
			return copyReport{}, err
		}
	}
	return copyReport{looked, c.log.written - before}, nil
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
// is left out while the process runs: it may have gone meanwhile.
func (c *copier) copy(process uint32, pid int, spans []span, still bool) (uint64, error) {
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
				failed.set(c.piece(process, pid, it, buffer[:it.end-it.start], still))
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

func (c *copier) piece(process uint32, pid int, it copyPiece, data []byte, still bool) error {
	if err := readMemory(pid, it.start, data); err != nil {
		if still {
			return err
		}
		return nil
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
			return nil
		}
		if err := c.log.write(process, at, data[first*pageSize:last*pageSize]); err != nil {
			return err
		}
		copy(known[first:last], sums[first:last])
		first = last
	}
	return nil
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
