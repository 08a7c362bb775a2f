package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// treeRecord names the root of a restored process tree so that any later process of this node can kill it for certain.
// The hook writes it to tickets/<pod UID>/<container>.tree before the tree is reported as held.
type treeRecord struct {
	InitPID     int    `json:"initPID"`
	InitStart   uint64 `json:"initStart"`
	BootID      string `json:"bootID"`
	ContainerID string `json:"containerID"`
}

func treeFile(ticketDir, container string) string { return filepath.Join(ticketDir, container+".tree") }

func writeTree(ticketDir, container, containerID string, initPID int) error {
	stat, err := readStat(initPID)
	if err != nil {
		return err
	}
	data, err := json.Marshal(treeRecord{initPID, stat.start, bootID(), containerID})
	if err != nil {
		return err
	}
	return writeAtomic(treeFile(ticketDir, container), data)
}

// killRecordedTree kills the tree an earlier restore of this container left, if it still lives. CRIU or runc can die at
// a moment when no hook is looking (between post-restore and pre-resume, or after the release): the tasks then run, or
// stay, without an owner, and a fresh start beside them would make two copies in one pod. A CRIU that is still there, its
// runc killed by a containerd that had lost its kubelet, was seen to keep the dead tree for ever; so it goes, too.
func killRecordedTree(ticketDir, container string) error {
	data, err := os.ReadFile(treeFile(ticketDir, container))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var record treeRecord
	if err := json.Unmarshal(data, &record); err != nil {
		return fmt.Errorf("%s: %w", treeFile(ticketDir, container), err)
	}
	if record.BootID != bootID() || !isProcess(record.InitPID, record.InitStart) {
		return nil
	}
	return errors.Join(killTree(record.InitPID), killTracer(record.InitPID))
}

// isProcess says whether pid is still the process that began at start.
func isProcess(pid int, start uint64) bool {
	stat, err := readStat(pid)
	return err == nil && stat.start == start
}

// killTree kills a container by its first process. As init of a pid namespace of its own the kernel kills the rest with
// it. In a shared pid namespace (shareProcessNamespace, hostPID) all its descendants are stopped first, until no new
// ones are found, so that none can fork away, and then killed. It returns when all are dead, or after two seconds when
// death is pending for all: tasks that CRIU traces become zombies which only CRIU can reap, and it waits for us.
func killTree(initPID int) error {
	if initPID <= 1 {
		return fmt.Errorf("not a container's process: pid %d", initPID)
	}
	root, err := pidfdOpen(initPID)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	fds := []int{root}
	defer func() { closeAll(fds) }()
	if !isNamespaceInit(initPID) {
		_ = pidfdSignal(root, syscall.SIGSTOP)
		fds = append(fds, stopDescendants(initPID)...)
	}
	var failed error
	for _, fd := range fds {
		failed = errors.Join(failed, pidfdSignal(fd, syscall.SIGKILL))
	}
	awaitDeath(fds, 2*time.Second)
	return failed
}

// killTracer kills who traces a process that was killed and does not die: the first process of a pid namespace waits in
// the kernel until all others of it are reaped, and of those that CRIU traces only CRIU can be the one. CRIU ignores how
// its pre-resume script ended, goes on with a tree that is dead, and was seen to wait for its first process for ever.
// No task of the tree runs for a moment when its tracer dies: death is pending for all of them.
func killTracer(pid int) error {
	root, err := pidfdOpen(pid)
	if err != nil {
		return nil
	}
	defer syscall.Close(root)
	tracer := statusNumber(pid, "TracerPid:")
	if dead, err := pollFds([]int{root}, 0); tracer <= 1 || err != nil || dead[0] {
		return err
	}
	for _, child := range descendants(pid) {
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
	fd, err := pidfdOpen(tracer)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if statusNumber(pid, "TracerPid:") != tracer {
		return nil
	}
	return pidfdSignal(fd, syscall.SIGKILL)
}

// statusNumber reads the first number of a line of /proc/PID/status; 0 when there is none.
func statusNumber(pid int, name string) int {
	words := statusLine(pid, name)
	if len(words) == 0 {
		return 0
	}
	number, _ := strconv.Atoi(words[0])
	return number
}

// statusLine returns the words of a line of /proc/PID/status; none when the process is gone.
func statusLine(pid int, name string) []string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		if words, ok := strings.CutPrefix(line, name); ok {
			return strings.Fields(words)
		}
	}
	return nil
}

// stopDescendants stops all processes below pid and returns their pidfds.
func stopDescendants(pid int) []int {
	var fds []int
	seen := map[int]bool{}
	for found := true; found; {
		found = false
		for _, child := range descendants(pid) {
			if seen[child] {
				continue
			}
			found, seen[child] = true, true
			if fd, err := pidfdOpen(child); err == nil {
				fds = append(fds, fd)
				_ = pidfdSignal(fd, syscall.SIGSTOP)
			}
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		syscall.Close(fd)
	}
}

func awaitDeath(fds []int, limit time.Duration) {
	end := boottime() + int64(limit)
	for len(fds) > 0 && boottime() < end {
		ready, err := pollFds(fds, time.Duration(end-boottime()))
		if err != nil {
			return
		}
		alive := fds[:0:0]
		for i, dead := range ready {
			if !dead {
				alive = append(alive, fds[i])
			}
		}
		fds = alive
	}
}

// isNamespaceInit says whether pid is number 1 of a pid namespace below ours. Only a certain answer is yes.
func isNamespaceInit(pid int) bool {
	pids := statusLine(pid, "NSpid:")
	return len(pids) > 1 && pids[len(pids)-1] == "1"
}

// descendants lists the processes below pid, parents before children, by one walk over /proc.
func descendants(pid int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	for _, entry := range entries {
		if child, err := strconv.Atoi(entry.Name()); err == nil {
			if stat, err := readStat(child); err == nil {
				children[stat.parent] = append(children[stat.parent], child)
			}
		}
	}
	found := []int{pid}
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i]]...)
	}
	return found[1:]
}
