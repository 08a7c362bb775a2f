package main

import (
	"encoding/binary"
	"syscall"
	"unsafe"
)

// The kernel's interface of userfaultfd (include/uapi/linux/userfaultfd.h); these numbers are the same on amd64 and arm64.
const (
	uffdCopy     = 0xc028aa03
	uffdZeroPage = 0xc020aa04
	uffdWake     = 0x8010aa02
	uffdMessage  = 32

	uffdPageFault = 0x12
	uffdFork      = 0x13
	uffdRemap     = 0x14
	uffdRemove    = 0x15
	uffdUnmap     = 0x16
)

// copyPages fills [start, start+len(from)) and says how many bytes of it; waiting tasks go on.
func copyPages(uffd int, start uint64, from []byte) (int64, syscall.Errno) {
	request := [5]uint64{start, uint64(uintptr(unsafe.Pointer(unsafe.SliceData(from)))), uint64(len(from)), 0, 0}
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(uffd), uffdCopy, uintptr(unsafe.Pointer(&request)))
	return max(0, int64(request[4])), errno
}

// zeroPage fills one page with zeroes.
func zeroPage(uffd int, start uint64) syscall.Errno {
	request := [4]uint64{start, pageSize, 0, 0}
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(uffd), uffdZeroPage, uintptr(unsafe.Pointer(&request)))
	return errno
}

// wakePage lets those go on who wait for a page.
func wakePage(uffd int, start uint64) {
	request := [2]uint64{start, pageSize}
	_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, uintptr(uffd), uffdWake, uintptr(unsafe.Pointer(&request)))
}

// uffdEvent is one message of the kernel.
type uffdEvent struct {
	kind    byte
	first   uint64 // of a fork the child's descriptor, of a move its origin, else where a range begins
	second  uint64 // of a fault its address, of a move its target, else where a range ends
	length  uint64
	present bool
}

// nextEvent reads a message without waiting for one.
func nextEvent(uffd int) (uffdEvent, error) {
	var raw [uffdMessage]byte
	n, err := syscall.Read(uffd, raw[:])
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return uffdEvent{}, nil
	}
	if err != nil || n != uffdMessage {
		return uffdEvent{}, err
	}
	word := func(at int) uint64 { return binary.NativeEndian.Uint64(raw[at:]) }
	it := uffdEvent{kind: raw[0], first: word(8), second: word(16), length: word(24), present: true}
	if it.kind == uffdFork {
		it.first &= 0xffffffff
	}
	return it, nil
}
