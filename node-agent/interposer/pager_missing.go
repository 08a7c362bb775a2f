package main

import "slices"

// missing is memory that is not there yet, sorted and without overlaps.
type missing []piece

// find returns the index of the piece that holds an address, or of the first one behind it and false.
func (m missing) find(address uint64) (int, bool) {
	i, _ := slices.BinarySearchFunc(m, address, func(p piece, at uint64) int {
		if p.end <= at {
			return -1
		}
		return 1
	})
	return i, i < len(m) && m[i].start <= address
}

// cut takes a range out and returns what was missing of it.
func (m *missing) cut(start, end uint64) missing {
	old := *m
	first, _ := old.find(start)
	last := first
	for last < len(old) && old[last].start < end {
		last++
	}
	if first == last {
		return nil
	}
	taken := slices.Clone(old[first:last])
	var left []piece
	if head := &taken[0]; head.start < start {
		left = append(left, piece{head.start, start, head.offset, head.remote})
		head.offset += int64(start - head.start)
		head.start = start
	}
	if tail := &taken[len(taken)-1]; tail.end > end {
		left = append(left, piece{end, tail.end, tail.offset + int64(end-tail.start), tail.remote})
		tail.end = end
	}
	switch {
	case len(left) == 0 && first == 0:
		*m = old[last:] // what happens nearly always: from the front, without a copy
	case len(left) == 1 && last == first+1:
		old[first] = left[0]
	default:
		*m = slices.Replace(old, first, last, left...)
	}
	return taken
}

// move follows a mapping to another address.
func (m *missing) move(from, to, length uint64) {
	taken := m.cut(from, from+length)
	for i := range taken {
		taken[i].start += to - from
		taken[i].end += to - from
	}
	m.cut(to, to+length)
	at, _ := m.find(to)
	*m = slices.Insert(*m, at, taken...)
}

// fetched returns a remote piece of which a span of the source holds something, and what: [from, to) there.
func (m missing) fetched(it span) (at int, from, to uint64) {
	for i, p := range m {
		origin := uint64(p.offset)
		from, to := max(it.start, origin), min(it.end, origin+p.end-p.start)
		if p.remote && from < to {
			return i, from, to
		}
	}
	return -1, 0, 0
}
