package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

// dumpCommand runs a `runc checkpoint --lazy-pages`, which writes no memory: the agent reads it from the frozen processes.
// CRIU holds them until a client has fetched all from its page server, and nobody fetches anything: this command tells
// it, as such a client would, that nothing more is wanted. The server is plain TCP without a password, so it is given a
// network namespace of its own, in which nobody else can reach it.
//
//	runc-migratable container-migration-dump PORT RUNC ARGUMENT...
const dumpCommand = "container-migration-dump"

// closePages is CRIU's message that ends a page server (criu/page-xfer.c of CRIU 4.2, PS_IOV_CLOSE): command, padding,
// number of pages, address, and whose. The answer is a 32-bit status.
const (
	closePages      = 0x1023
	closePagesBytes = 32
)

const closeLook = 2 * time.Millisecond

func runDump(argv, env []string) int {
	var port uint16
	if len(argv) < 4 {
		return failDump("wants a port and a command")
	}
	if _, err := fmt.Sscanf(argv[2], "%d", &port); err != nil {
		return failDump("not a port: " + argv[2])
	}
	path, err := exec.LookPath(argv[3])
	if err != nil {
		return failDump(err.Error())
	}
	runtime.LockOSThread() // the namespace is this thread's, and the child's
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		return failDump("no network namespace: " + err.Error())
	}
	if err := loopbackUp(); err != nil {
		return failDump("no loopback: " + err.Error())
	}
	pid, err := syscall.ForkExec(path, argv[3:], &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
	if err != nil {
		return failDump(argv[3] + ": " + err.Error())
	}
	ended := make(chan int, 1)
	go func() {
		status, err := waitFor(pid)
		if err != nil {
			status = failDump("it cannot be waited for: " + err.Error())
		}
		ended <- status
	}()
	closed := false
	for {
		select {
		case status := <-ended:
			return status
		case <-time.After(closeLook):
			closed = closed || endPages(port)
		}
	}
}

func failDump(why string) int {
	fmt.Fprintln(os.Stderr, "container-migration: the dump cannot be made: "+why)
	return 1
}

// endPages says whether the page server was there and has been told; on this very thread, for only it is in the namespace.
func endPages(port uint16) bool {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	if err := syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return false
	}
	message := make([]byte, closePagesBytes)
	binary.LittleEndian.PutUint32(message, closePages)
	if _, err := syscall.Write(fd, message); err != nil {
		return false
	}
	// The server waits until we hang up, and its answer is held back for 200 ms (TCP_CORK): we hang up first, one way only,
	// for an answer that nobody takes would be an error to it. How it went says the command's end.
	if err := syscall.Shutdown(fd, syscall.SHUT_WR); err != nil {
		return false
	}
	var status [4]byte
	for n := 1; n > 0 && err == nil; {
		n, err = syscall.Read(fd, status[:])
	}
	return true
}

// loopbackUp brings up the only interface of a new namespace.
func loopbackUp() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var request struct {
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:], "lo")
	request.flags = syscall.IFF_UP
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return errno
	}
	return nil
}
