package main

import (
	"fmt"
	"syscall"
)

const (
	fillBytes  = 512 << 10 // at once in the background: a fault waits for one such copy at most
	faultBytes = 64 << 10  // around a fault: who touches a page soon touches its neighbours
)

// pagedTask is a process whose memory is filled in, by its userfaultfd.
type pagedTask struct {
	uffd    int
	missing missing
	pages   []byte
	waiting []uint64 // pages that somebody waits for
	gone    bool
}

// events does what the kernel reports until nothing is left to read, and then answers those who wait for a page: nothing
// can be copied while something is to be read. It returns the tasks that were forked: their memory is missing too.
func (t *pagedTask) events() ([]*pagedTask, error) {
	var born []*pagedTask
	for {
		event, err := nextEvent(t.uffd)
		if err != nil {
			return born, fmt.Errorf("cannot read the kernel's events: %w", err)
		}
		if !event.present {
			return born, t.answer()
		}
		switch event.kind {
		case uffdPageFault:
			t.waiting = append(t.waiting, event.second&^(pageSize-1))
		case uffdRemove, uffdUnmap:
			t.missing.cut(event.first, event.second)
		case uffdRemap:
			t.missing.move(event.first, event.second, event.length)
		case uffdFork:
			born = append(born, &pagedTask{uffd: int(event.first), missing: append(missing(nil), t.missing...), pages: t.pages})
		default:
			return born, fmt.Errorf("the kernel reports an unknown event %#x", event.kind)
		}
	}
}

// answer lets those go on who wait for a page; whoever cannot yet, since there is something to be read again, waits on.
func (t *pagedTask) answer() error {
	waiting := t.waiting
	t.waiting = nil
	for _, address := range waiting {
		answered, err := t.fault(address)
		if err != nil {
			return err
		}
		if !answered {
			t.waiting = append(t.waiting, address)
		}
	}
	return nil
}

// fault brings a page, with some around it, or zeroes when there never was one.
func (t *pagedTask) fault(address uint64) (answered bool, err error) {
	if i, found := t.missing.find(address); found {
		it, around := t.missing[i], address&^(faultBytes-1)
		err := t.fill(max(it.start, around), min(it.end, around+faultBytes))
		_, still := t.missing.find(address)
		return !still || t.gone, err
	}
	switch errno := zeroPage(t.uffd, address); errno {
	case 0:
		return true, nil
	case syscall.EAGAIN:
		return false, nil
	case syscall.EEXIST, syscall.ENOENT: // it came in between, or its mapping went
		wakePage(t.uffd, address)
		return true, nil
	case syscall.ESRCH, syscall.ENOSPC:
		t.gone = true
		return true, nil
	default:
		return false, fmt.Errorf("a page cannot be cleared: %w", errno)
	}
}

// next fills in some of what is missing.
func (t *pagedTask) next() error {
	it := t.missing[0]
	return t.fill(it.start, min(it.end, it.start+fillBytes))
}

// fill copies a range of one piece, or as much of it as the kernel takes now.
func (t *pagedTask) fill(start, end uint64) error {
	i, found := t.missing.find(start)
	if !found {
		return nil
	}
	offset := t.missing[i].offset + int64(start-t.missing[i].start)
	copied, errno := copyPages(t.uffd, start, t.pages[offset:offset+int64(end-start)])
	if copied > 0 {
		t.missing.cut(start, start+uint64(copied))
		return nil
	}
	switch errno {
	case syscall.EAGAIN:
		return nil
	case syscall.ESRCH, syscall.ENOSPC:
		t.gone = true
		return nil
	case syscall.ENOENT, syscall.EEXIST:
		// The range reaches over a border that was not there before, or a page came in between, or its mapping went.
		if end-start > pageSize {
			return t.fill(start, start+pageSize)
		}
		t.missing.cut(start, end)
		wakePage(t.uffd, start)
		return nil
	}
	return fmt.Errorf("%d bytes at %#x cannot be filled in: %w", end-start, start, errno)
}

func (t *pagedTask) done() bool { return t.gone || len(t.missing) == 0 }
