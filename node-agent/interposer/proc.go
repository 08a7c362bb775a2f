package main

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// System calls that package syscall has no name for; these numbers are the same on amd64 and arm64.
const (
	sysPidfdSendSignal = 424
	sysPidfdOpen       = 434
	clockBoottime      = 7
	pollIn             = 1
)

// boottime is CLOCK_BOOTTIME in nanoseconds: the clock of every deadline in the protocol; it goes on during suspend.
func boottime() int64 {
	var now syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&now)), 0); errno != 0 {
		panic("clock_gettime: " + errno.Error())
	}
	return now.Nano()
}

func bootID() string {
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(data))
}

// procStat is what is needed of /proc/PID/stat.
type procStat struct {
	state  byte
	parent int
	start  uint64 // field 22, clock ticks after boot: with the pid it names one process of this boot
}

func readStat(pid int) (procStat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseStat(data)
}

// parseStat counts from the last parenthesis: the command's name before it may contain anything.
func parseStat(data []byte) (procStat, error) {
	end := bytes.LastIndexByte(data, ')')
	fields := strings.Fields(string(data[end+1:]))
	if end < 0 || len(fields) < 20 || len(fields[0]) != 1 {
		return procStat{}, errors.New("cannot parse /proc/PID/stat")
	}
	parent, errA := strconv.Atoi(fields[1])
	start, errB := strconv.ParseUint(fields[19], 10, 64)
	return procStat{state: fields[0][0], parent: parent, start: start}, errors.Join(errA, errB)
}

func pidfdOpen(pid int) (int, error) {
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil // the kernel sets close-on-exec
}

// pidfdSignal signals exactly that process. A sent SIGKILL means that death is at least pending: the kernel lets a task
// with a pending SIGKILL execute no further instruction of its program.
func pidfdSignal(fd int, signal syscall.Signal) error {
	_, _, errno := syscall.Syscall6(sysPidfdSendSignal, uintptr(fd), uintptr(signal), 0, 0, 0, 0)
	if errno != 0 && errno != syscall.ESRCH {
		return errno
	}
	return nil
}

type pollFd struct {
	fd      int32
	events  int16
	revents int16
}

// pollFds waits until one of fds is readable (a pidfd: dead) and says which are. Its sleep is bounded, since ppoll's
// clock stands still during suspend and ours does not.
func pollFds(fds []int, wait time.Duration) ([]bool, error) {
	polled := make([]pollFd, len(fds), len(fds)+1)
	for i, fd := range fds {
		polled[i] = pollFd{fd: int32(fd), events: pollIn}
	}
	timeout := syscall.NsecToTimespec(int64(max(0, min(wait, time.Second))))
	_, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(polled))), uintptr(len(polled)),
		uintptr(unsafe.Pointer(&timeout)), 0, 0, 0)
	ready := make([]bool, len(fds))
	if errno == syscall.EINTR {
		return ready, nil
	}
	if errno != 0 {
		return ready, errno
	}
	for i := range polled {
		ready[i] = polled[i].revents != 0
	}
	return ready, nil
}
