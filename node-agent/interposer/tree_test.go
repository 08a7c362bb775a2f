package main

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Plays CRIU: its child is the first process of a pid namespace, has a child of its own, and both are traced by us, who
// never reap them.
const tracer = `
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, CLONE_NEWPID = 0x4206, 0x20000000
if libc.unshare(CLONE_NEWPID):
    sys.exit("unshare: %d" % ctypes.get_errno())
read, write = os.pipe()
first = os.fork()
if not first:
    if not os.fork():
        time.sleep(1000)
    os.write(write, b"x")
    time.sleep(1000)
os.read(read, 1)
time.sleep(0.05)
children = open("/proc/%d/task/%d/children" % (first, first)).read().split()
for pid in (first, int(children[0])):
    if libc.ptrace(PTRACE_SEIZE, pid, None, None):
        sys.exit("ptrace: %d" % ctypes.get_errno())
print(first, flush=True)
time.sleep(1000)
`

// tracedTree starts the tracer and returns it and the first process of its tree.
func tracedTree(t *testing.T) (*exec.Cmd, int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes a pid namespace: needs root")
	}
	criu := exec.Command("python3", "-c", tracer)
	out, err := criu.StdoutPipe()
	must(t, err)
	criu.Stderr = os.Stderr
	must(t, criu.Start())
	t.Cleanup(func() { criu.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	first, err := strconv.Atoi(strings.TrimSpace(line))
	must(t, err)
	return criu, first
}

func endsWithItsTree(t *testing.T, criu *exec.Cmd, first int) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- criu.Wait() }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the tracer lives, and so does the tree that it never reaps")
	}
	eventually(t, "the tree is dead", func() bool { return !alive(first) })
}

func TestATreeWhoseTracerNeverReapsItDiesWithTheTracer(t *testing.T) {
	criu, first := tracedTree(t)
	must(t, killTree(first))
	time.Sleep(50 * time.Millisecond)
	if !alive(first) {
		t.Fatal("it died by itself: the test shows nothing")
	}
	must(t, killTracer(first))
	endsWithItsTree(t, criu, first)
}

func TestARecordedTreeIsDeadBeforeAnotherOneIsMade(t *testing.T) {
	criu, first := tracedTree(t)
	dir := t.TempDir()
	must(t, writeTree(dir, "app", "c1", first))
	must(t, killRecordedTree(dir, "app"))
	endsWithItsTree(t, criu, first)
}

func TestWhoTracesNobodyIsLeftAlone(t *testing.T) {
	sleep := exec.Command("sleep", "1000")
	must(t, sleep.Start())
	t.Cleanup(func() { sleep.Process.Kill(); sleep.Wait() })
	must(t, killTracer(sleep.Process.Pid))
	if !alive(sleep.Process.Pid) {
		t.Fatal("a process without a tracer was touched")
	}
}
