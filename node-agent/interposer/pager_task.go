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
	pid     int // as the images count; of a child that was forked, its parent's: the memory is the same
	missing missing
	pages   []byte
	waiting []uint64 // pages that somebody waits for
	asked   []uint64 // of those the ones that the source was asked for
	gone    bool
}

// events does what the kernel reports until nothing is left to read, and then answers those who wait for a page: nothing
// can be copied while something is to be read. It returns the tasks that were forked: their memory is missing too.
func (t *pagedTask) events(remote *pageClient) ([]*pagedTask, error) {
	var born []*pagedTask
	for {
		event, err := nextEvent(t.uffd)
		if err != nil {
			return born, fmt.Errorf("cannot read the kernel's events: %w", err)
		}
		if !event.present {
			return born, t.answer(remote)
		}
		switch event.kind {
		case uffdPageFault:
			t.waiting = append(t.waiting, event.second&^(pageSize-1))
		case uffdRemove, uffdUnmap:
			t.missing.cut(event.first, event.second)
		case uffdRemap:
			t.missing.move(event.first, event.second, event.length)
		case uffdFork:
			born = append(born, &pagedTask{
				uffd: int(event.first), pid: t.pid, missing: append(missing(nil), t.missing...), pages: t.pages,
			})
		default:
			return born, fmt.Errorf("the kernel reports an unknown event %#x", event.kind)
		}
	}
}

// answer lets those go on who wait for a page; whoever cannot yet, since there is something to be read again, waits on.
func (t *pagedTask) answer(remote *pageClient) error {
	waiting := t.waiting
	t.waiting = nil
	for _, address := range waiting {
		answered, err := t.fault(address, remote)
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
func (t *pagedTask) fault(address uint64, remote *pageClient) (answered bool, err error) {
	if i, found := t.missing.find(address); found {
		it, around := t.missing[i], address&^(faultBytes-1)
		start, end := max(it.start, around), min(it.end, around+faultBytes)
		if it.remote {
			return t.ask(it, address, start, end, remote), nil
		}
		err := t.fill(start, end)
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

// ask asks the source for a page with some around it, unless it is on its way; false when it cannot be asked now.
func (t *pagedTask) ask(it piece, address, start, end uint64, remote *pageClient) bool {
	origin := uint64(it.offset) - it.start // from an address here to the one there; it may wrap around
	if remote.next(t.pid, address+origin) == address+origin {
		start = remote.behind(t.pid, start+origin, address+origin) - origin
		end = remote.ahead(t.pid, address+origin, end+origin) - origin
		if !remote.request(&block{pid: t.pid, spans: []span{{start + origin, end + origin}}}, true) {
			return false
		}
	}
	t.asked = append(t.asked, address)
	return true
}

// local returns the first piece that can be filled in from here.
func (t *pagedTask) local() (piece, bool) {
	for _, it := range t.missing {
		if !it.remote {
			return it, !t.gone
		}
	}
	return piece{}, false
}

// next fills in some of what is missing and lies here.
func (t *pagedTask) next() error {
	if it, ok := t.local(); ok {
		return t.fill(it.start, min(it.end, it.start+fillBytes))
	}
	return nil
}

// fill copies a range of one local piece, or as much of it as the kernel takes now.
func (t *pagedTask) fill(start, end uint64) error {
	i, found := t.missing.find(start)
	if !found {
		return nil
	}
	offset := t.missing[i].offset + int64(start-t.missing[i].start)
	_, err := t.copy(start, t.pages[offset:offset+int64(end-start)])
	return err
}

// place fills in what came from the source, wherever the process has it now; false when there is something to be read
// first. What is not missing any more needs nothing.
func (t *pagedTask) place(b *block) (placed bool, err error) {
	data := b.data
	for _, it := range b.spans {
		for !t.gone {
			i, from, to := t.missing.fetched(it)
			if i < 0 {
				break
			}
			start := t.missing[i].start + from - uint64(t.missing[i].offset)
			if again, err := t.copy(start, data[from-it.start:to-it.start]); again || err != nil {
				return false, err
			}
		}
		data = data[it.end-it.start:]
	}
	t.release()
	return true, nil
}

// release lets those look again who waited for a page that is not missing any more.
func (t *pagedTask) release() {
	var left []uint64
	for _, address := range t.asked {
		if _, still := t.missing.find(address); still && !t.gone {
			left = append(left, address)
			continue
		}
		wakePage(t.uffd, address)
	}
	t.asked = left
}

// copy gives a process the beginning of this content, or as much of it as the kernel takes now; `again` when it takes
// nothing before its events are read.
func (t *pagedTask) copy(start uint64, content []byte) (again bool, err error) {
	copied, errno := copyPages(t.uffd, start, content)
	if copied > 0 {
		t.missing.cut(start, start+uint64(copied))
		return false, nil
	}
	switch errno {
	case syscall.EAGAIN:
		return true, nil
	case syscall.ESRCH, syscall.ENOSPC:
		t.gone = true
		return false, nil
	case syscall.ENOENT, syscall.EEXIST:
		// The range reaches over a border that was not there before, or a page came in between, or its mapping went.
		if len(content) > pageSize {
			return t.copy(start, content[:pageSize])
		}
		t.missing.cut(start, start+uint64(len(content)))
		wakePage(t.uffd, start)
		return false, nil
	}
	return false, fmt.Errorf("%d bytes at %#x cannot be filled in: %w", len(content), start, errno)
}

func (t *pagedTask) done() bool { return t.gone || len(t.missing) == 0 }
