package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
)

// readMemoryLog finds in a copier's log what a dump has left in a process: all of it, of which what is zeroes is not missing.
// Without a log it returns nothing: then the memory is still where it was.
func readMemoryLog(path string, pid int, left missing) (lazyMemory, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return lazyMemory{}, nil
	}
	if err != nil {
		return lazyMemory{}, err
	}
	defer file.Close()
	if slices.ContainsFunc(left, func(it piece) bool { return !it.remote }) {
		return lazyMemory{}, fmt.Errorf("memory of process %d is both in the images and in %s", pid, path)
	}
	found := newLogIndex(left)
	if err := found.read(file, uint32(pid)); err != nil {
		return lazyMemory{}, fmt.Errorf("%s: %w", path, err)
	}
	return lazyMemory{found.pieces(), path}, nil
}

// logIndex knows for each page that is asked for where in the log it is; 0 when it is in no frame: nothing is there but a
// frame's head.
type logIndex struct {
	left   missing
	places [][]int64
}

func newLogIndex(left missing) *logIndex {
	x := &logIndex{left: left}
	for _, it := range left {
		x.places = append(x.places, make([]int64, (it.end-it.start)/pageSize))
	}
	return x
}

// read goes from head to head, and looks at nothing else.
func (x *logIndex) read(file *os.File, process uint32) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, frameHeadBytes)
	for at := int64(0); ; {
		if _, err := file.ReadAt(head, at); err != nil {
			return fmt.Errorf("it ends at %d without its last frame: %w", at, err)
		}
		at += frameHeadBytes
		whose, length := binary.LittleEndian.Uint32(head), int64(binary.LittleEndian.Uint32(head[4:]))
		address := binary.LittleEndian.Uint64(head[8:])
		switch {
		case whose == 0 && length == 0 && at == info.Size():
			return nil
		case whose == 0 || length == 0 || length%pageSize != 0 || length > copyBytes || address%pageSize != 0 || address > addressCeiling:
			return fmt.Errorf("the frame at %d is none", at-frameHeadBytes)
		case at+length > info.Size():
			return fmt.Errorf("the frame at %d is cut off", at-frameHeadBytes)
		case whose == process:
			x.note(address, address+uint64(length), at)
		}
		at += length
	}
}

// note takes down that memory is at an offset of the log.
func (x *logIndex) note(start, end uint64, offset int64) {
	i, _ := x.left.find(start)
	for ; i < len(x.left) && x.left[i].start < end; i++ {
		it := x.left[i]
		for page := max(start, it.start); page < min(end, it.end); page += pageSize {
			x.places[i][(page-it.start)/pageSize] = offset + int64(page-start)
		}
	}
}

// pieces returns what is in the log, neighbours together.
func (x *logIndex) pieces() missing {
	var found missing
	for i, it := range x.left {
		for number, place := range x.places[i] {
			if place == 0 {
				continue
			}
			start := it.start + uint64(number)*pageSize
			if last := len(found) - 1; number > 0 && last >= 0 && found[last].end == start &&
				found[last].offset+int64(start-found[last].start) == place {
				found[last].end += pageSize
			} else {
				found = append(found, piece{start, start + pageSize, place, false})
			}
		}
	}
	return found
}
