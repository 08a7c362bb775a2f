package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

// copierCommand copies the memory of running processes, in rounds: the first round writes all that is not zero to the
// standard output, each later one what is not as it was written last. When the processes stand still a last round makes the
// copy exact. Nothing is injected into them and nothing about them is believed: a page is compared by its content, so it
// does not matter who wrote it, forked, or mapped something else there.
//
//	runc-migratable container-migration-copy
//
// A round is asked for by a line on the standard input, `copyRound`. Its answer is one `copyHead` after another, each with its
// bytes, and ends with one of process 0, whose address is how many bytes were looked at.
const copierCommand = "container-migration-copy"

// copyRound says what to copy.
type copyRound struct {
	// Processes by the pids that the images count: their pids here.
	Processes map[uint32]int `json:"processes"`
	// Images is CRIU's directory when the processes stand still and are dumped: what it left in them is copied. Before, all
	// private anonymous memory is.
	Images string `json:"images,omitempty"`
}

const copyHeadBytes = 16 // process uint32, length uint32, address uint64, little-endian

const (
	copyBytes  = 1 << 20 // looked at, and written, at once
	regionSize = 2 << 20
)

// copier knows what the other side has.
type copier struct {
	pages pageTable
	out   *copyWriter
}

func runCopier(in io.Reader, out io.Writer) int {
	c := &copier{pages: newPageTable(), out: &copyWriter{out: out}}
	requests := bufio.NewReader(in)
	for {
		line, err := requests.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return 0
		}
		if err == nil {
			err = c.round(line)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "container-migration: memory cannot be copied: "+err.Error())
			return 1
		}
	}
}

func (c *copier) round(line []byte) error {
	var asked copyRound
	if err := json.Unmarshal(line, &asked); err != nil {
		return err
	}
	looked := uint64(0)
	for process, pid := range asked.Processes {
		spans, err := anonymous(pid)
		if asked.Images != "" {
			spans, err = leftByCriu(asked.Images, process)
		}
		if err != nil && asked.Images != "" {
			return fmt.Errorf("process %d: %w", process, err)
		}
		size, err := c.copy(process, pid, spans, asked.Images != "")
		if err != nil {
			return fmt.Errorf("process %d: %w", process, err)
		}
		looked += size
	}
	return c.out.write(0, looked, nil)
}

// leftByCriu returns the memory that a dump has left in a process.
func leftByCriu(images string, process uint32) ([]span, error) {
	memory, err := readLazyMemory(filepath.Clean(images), int(process))
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
		if err := c.out.write(process, at, data[first*pageSize:last*pageSize]); err != nil {
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
