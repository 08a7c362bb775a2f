package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"syscall"
)

// forkExec starts a child that dies with the calling thread. Not os/exec: that switches inherited descriptors to other
// modes, and these are the container's.
func forkExec(path string, args, env []string, files []uintptr) (int, error) {
	return syscall.ForkExec(path, args, &syscall.ProcAttr{
		Env: env, Files: files, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
}

// waitFor returns the exit status, 128 plus the signal like a shell.
func waitFor(pid int) (int, error) {
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return -1, err
		}
		if status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return status.ExitStatus(), nil
	}
}

// restoreFailure makes the sentence of a failed restore: the hook's reason, CRIU's last errors, runc's last error.
func restoreFailure(err error, what, hookLog, criuLog, runcLog string) string {
	parts := []string{what}
	if err != nil {
		parts = append(parts, err.Error())
	}
	parts = append(parts, lastLines(hookLog, "", 2)...)
	criu := lastLines(criuLog, "Error", 4)
	parts = append(parts, criu...)
	if len(criu) == 0 {
		parts = append(parts, lastLines(runcLog, "error", 1)...)
	}
	return shorten(strings.Join(parts, "; "), 1500)
}

// lastLines returns the last lines that contain needle, from the end of a file that may be large or not there.
func lastLines(path, needle string, limit int) []string {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer file.Close()
	if size, err := file.Seek(0, io.SeekEnd); err == nil {
		_, _ = file.Seek(max(0, size-maxLine), io.SeekStart)
	}
	data, _ := io.ReadAll(io.LimitReader(file, maxLine))
	var found []string
	for line := range bytes.Lines(data) {
		text := strings.ToValidUTF8(string(bytes.TrimSpace(line)), "?")
		if text != "" && strings.Contains(text, needle) {
			found = append(found, shorten(text, 400))
		}
	}
	return found[max(0, len(found)-limit):]
}
