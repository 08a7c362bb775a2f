package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// CRIU's images (images/*.proto and include/{magic,pagemap}.h of CRIU 4.2): two 32-bit magic numbers, then messages in
// protobuf, each behind its length. pages-N.img holds the pages of the pagemap's entries that are present, in order.
const (
	imageMagic     = 0x54564319
	pagemapMagic   = 0x56084025
	memoryMagic    = 0x57492820
	entryParent    = 1 << 0
	entryLazy      = 1 << 1
	entryPresent   = 1 << 2
	pageSize       = 4096
	maxImage       = 256 << 20
	addressCeiling = 1 << 56
)

// piece is memory that is still missing in a process: [start, end), and where its bytes begin: in the pages file, or, of
// what stayed in the source's process, there.
type piece struct {
	start, end uint64
	offset     int64
	remote     bool
}

// lazyMemory is what CRIU leaves out when it restores a process lazily.
type lazyMemory struct {
	pieces missing
	pages  string // the file with their bytes
}

// readLazyMemory finds the memory of the process with this pid, as the images count, that is filled in after the restore.
func readLazyMemory(images string, pid int) (lazyMemory, error) {
	left, err := readLeft(images, pid)
	if err != nil {
		return lazyMemory{}, err
	}
	log, err := readMemoryLog(filepath.Join(filepath.Dir(images), memoryLog), pid, left.pieces)
	if err != nil || log.pages != "" {
		return log, err
	}
	if info, err := os.Lstat(left.pages); err != nil || !info.Mode().IsRegular() || info.Size() < left.size {
		return lazyMemory{}, errors.Join(fmt.Errorf("%s does not hold the %d bytes that its pagemap lists", left.pages, left.size), err)
	}
	return left.lazyMemory, nil
}

// leftMemory is what CRIU has left out, and how large the file must be that has some of it.
type leftMemory struct {
	lazyMemory
	size int64
}

// readLeft reads what CRIU has left out. A piece never reaches over the border of a mapping: the kernel fills one at a time.
func readLeft(images string, pid int) (leftMemory, error) {
	memory, err := readImage(filepath.Join(images, fmt.Sprintf("mm-%d.img", pid)), memoryMagic)
	if err != nil {
		return leftMemory{}, err
	}
	if len(memory) != 1 {
		return leftMemory{}, fmt.Errorf("mm-%d.img holds %d messages", pid, len(memory))
	}
	mappings, err := readMappings(memory[0])
	if err != nil {
		return leftMemory{}, fmt.Errorf("mm-%d.img: %w", pid, err)
	}
	name := fmt.Sprintf("pagemap-%d.img", pid)
	entries, err := readImage(filepath.Join(images, name), pagemapMagic)
	if err != nil || len(entries) == 0 {
		return leftMemory{}, errors.Join(fmt.Errorf("%s cannot be used", name), err)
	}
	head, err := readFields(entries[0])
	if err != nil {
		return leftMemory{}, fmt.Errorf("%s: %w", name, err)
	}
	pieces, size, err := readPagemap(entries[1:], mappings)
	if err != nil {
		return leftMemory{}, fmt.Errorf("%s: %w", name, err)
	}
	return leftMemory{lazyMemory{pieces, filepath.Join(images, fmt.Sprintf("pages-%d.img", head.number(1)))}, size}, nil
}

// readPagemap returns what is lazy, and how many bytes the pages file has.
func readPagemap(entries [][]byte, mappings [][2]uint64) (missing, int64, error) {
	var pieces missing
	offset, last := int64(0), uint64(0)
	for _, raw := range entries {
		entry, err := readFields(raw)
		if err != nil {
			return nil, 0, err
		}
		flags, count := entry.number(4), entry.number(5)
		if _, ok := entry[5]; !ok {
			count = entry.number(2)
		}
		start := entry.number(1)
		if start%pageSize != 0 || start < last || start > addressCeiling || count > addressCeiling/pageSize {
			return nil, 0, fmt.Errorf("the entry at %#x with %d pages is out of order", start, count)
		}
		if flags&entryParent != 0 || entry.number(3) != 0 {
			return nil, 0, errors.New("it refers to an earlier checkpoint")
		}
		last = start + count*pageSize
		switch flags & (entryPresent | entryLazy) {
		case entryPresent | entryLazy:
			pieces = append(pieces, cutAtBorders(piece{start, last, offset, false}, mappings)...)
		case entryLazy:
			pieces = append(pieces, cutAtBorders(piece{start, last, int64(start), true}, mappings)...)
		}
		if flags&entryPresent == 0 {
			continue
		}
		offset += int64(count * pageSize)
	}
	return pieces, offset, nil
}

func cutAtBorders(it piece, mappings [][2]uint64) []piece {
	var found []piece
	first, _ := slices.BinarySearchFunc(mappings, it.start, func(m [2]uint64, at uint64) int {
		if m[1] <= at {
			return -1
		}
		return 1
	})
	for _, m := range mappings[first:] {
		if m[0] >= it.end {
			break
		}
		start, end := max(m[0], it.start), min(m[1], it.end)
		found = append(found, piece{start, end, it.offset + int64(start-it.start), it.remote})
	}
	return found
}

// readMappings returns beginning and end of each mapping, in order.
func readMappings(memory []byte) ([][2]uint64, error) {
	var found [][2]uint64
	last := uint64(0)
	err := eachField(memory, func(it field) error {
		if it.number != 14 {
			return nil
		}
		mapping, err := readFields(it.data)
		if err != nil {
			return err
		}
		start, end := mapping.number(1), mapping.number(2)
		if start < last || end <= start {
			return fmt.Errorf("the mapping at %#x is out of order", start)
		}
		last = end
		found = append(found, [2]uint64{start, end})
		return nil
	})
	return found, err
}

// readImage returns the messages of an image.
func readImage(path string, magic uint32) ([][]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxImage {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, maxImage)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(data) < 8 || binary.LittleEndian.Uint32(data) != imageMagic || binary.LittleEndian.Uint32(data[4:]) != magic {
		return nil, fmt.Errorf("%s is not the image that its name says", path)
	}
	var messages [][]byte
	for data = data[8:]; len(data) > 0; {
		if len(data) < 4 || uint64(len(data)-4) < uint64(binary.LittleEndian.Uint32(data)) {
			return nil, fmt.Errorf("%s ends in the middle of a message", path)
		}
		size := binary.LittleEndian.Uint32(data)
		messages = append(messages, data[4:4+size])
		data = data[4+size:]
	}
	return messages, nil
}

// fields are the numbers of a protobuf message by their field's number, the last of each.
type fields map[uint64]uint64

func (f fields) number(field uint64) uint64 { return f[field] }

func readFields(message []byte) (fields, error) {
	found := fields{}
	err := eachField(message, func(it field) error {
		if it.data == nil {
			found[it.number] = it.value
		}
		return nil
	})
	return found, err
}

var errProtobuf = errors.New("it is no protobuf message")

// field is one of a message: its value, or its bytes when it has a length.
type field struct {
	number, value uint64
	data          []byte
	at            int // where in the message value or bytes begin
}

// eachField calls visit for each field.
func eachField(message []byte, visit func(field) error) error {
	for at := 0; at < len(message); {
		key, n := binary.Uvarint(message[at:])
		if n <= 0 {
			return errProtobuf
		}
		at += n
		it := field{number: key >> 3, at: at}
		switch key & 7 {
		case 0:
			if it.value, n = binary.Uvarint(message[at:]); n <= 0 {
				return errProtobuf
			}
		case 1:
			n = 8
		case 2:
			size, m := binary.Uvarint(message[at:])
			if m <= 0 || size > uint64(len(message)-at-m) {
				return errProtobuf
			}
			n = m + int(size)
			it.at, it.data = at+m, message[at+m:at+n:at+n]
		case 5:
			n = 4
		default:
			return errProtobuf
		}
		if at += n; at > len(message) {
			return errProtobuf
		}
		if err := visit(it); err != nil {
			return err
		}
	}
	return nil
}
