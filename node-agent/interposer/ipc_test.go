package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestClearIPC needs root, as the interposer has it: it makes a namespace with one object of each kind.
func TestClearIPC(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run the tests as root: without it the IPC namespace cannot be entered")
	}
	pod := exec.Command("sh", "-c", "ipcmk -M 4096 -S 3 -Q >/dev/null; echo made; exec sleep 100")
	pod.SysProcAttr = &syscall.SysProcAttr{Cloneflags: cloneNewIPC}
	out, err := pod.StdoutPipe()
	must(t, err)
	must(t, pod.Start())
	defer func() { pod.Process.Kill(); pod.Wait() }()
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	namespace := fmt.Sprintf("/proc/%d/ns/ipc", pod.Process.Pid)
	count := func() int {
		listed, err := exec.Command("nsenter", "--ipc="+namespace, "cat", "/proc/sysvipc/shm", "/proc/sysvipc/msg", "/proc/sysvipc/sem").Output()
		must(t, err)
		return strings.Count(string(listed), "\n") - 3
	}
	if count() != 3 {
		t.Fatal("the test made no objects")
	}
	must(t, clearIPC(namespace))
	if left := count(); left != 0 {
		t.Fatalf("%d objects are left", left)
	}
	// Often enough that the process's first thread has its turn, too, which keeps the namespace it entered.
	for range 200 {
		must(t, clearIPC(namespace))
	}
}

func TestTheNodesOwnIPCIsNotTouched(t *testing.T) {
	if err := clearIPC("/proc/self/ns/ipc"); err == nil || !strings.Contains(err.Error(), "own IPC namespace") {
		t.Fatal(err)
	}
}
