package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
)

// An init container has run in the source pod already, so in the target pod's first sandbox it is a program that does
// nothing: the kubelet sees it end well and goes on. All else of the container stays as it is: user, limits, volumes,
// seccomp. So the program must need nothing: no memory, no library, no system call but the one that ends it.

// noopPath is where the program is in the container: /dev is a tmpfs of the container's own, so that neither a read-only
// root file system matters nor the image's content.
const noopPath = "/dev/.container-migration-noop"

// noopCode ends the process with exit_group(0).
var noopCode = map[string][]byte{
	"amd64": {0x31, 0xff, 0xb8, 0xe7, 0, 0, 0, 0x0f, 0x05},                // xor edi,edi; mov eax,231; syscall
	"arm64": {0, 0, 0x80, 0xd2, 0xc8, 0x0b, 0x80, 0xd2, 0x01, 0, 0, 0xd4}, // mov x0,#0; mov x8,#94; svc #0
}

var elfMachine = map[string]uint16{"amd64": 62, "arm64": 183}

const (
	elfBase    = 0x400000
	elfAlign   = 0x10000 // the largest page of arm64
	elfHeaders = 64 + 2*56
)

// noopProgram is a static ELF executable of noopCode; the second header says that the stack is not executable.
func noopProgram(arch string) ([]byte, error) {
	code, ok := noopCode[arch]
	if !ok {
		return nil, fmt.Errorf("there is no program that does nothing for the architecture %s", arch)
	}
	size := uint64(elfHeaders + len(code))
	type header struct {
		Type, Flags                                 uint32
		Offset, Address, Physical, File, Mem, Align uint64
	}
	var out bytes.Buffer
	out.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	err := errors.Join(
		binary.Write(&out, binary.LittleEndian, struct {
			Type, Machine                                          uint16
			Version                                                uint32
			Entry, Headers, Sections                               uint64
			Flags                                                  uint32
			Size, HeaderSize, HeaderCount, SectionSize, SectionNum uint16
			Strings                                                uint16
		}{2, elfMachine[arch], 1, elfBase + elfHeaders, 64, 0, 0, 64, 56, 2, 64, 0, 0}),
		binary.Write(&out, binary.LittleEndian, header{1, 5, 0, elfBase, elfBase, size, size, elfAlign}),
		binary.Write(&out, binary.LittleEndian, header{0x6474e551, 6, 0, 0, 0, 0, 0, 16}),
	)
	out.Write(code)
	return out.Bytes(), err
}

// installNoop makes sure that the program lies on the host, where it may be executed, and returns its path.
func installNoop(cfg *Config) (string, error) {
	program, err := noopProgram(runtime.GOARCH)
	if err != nil {
		return "", err
	}
	path := filepath.Join(cfg.BinDir, "noop")
	info, statErr := os.Lstat(path)
	there, readErr := os.ReadFile(path)
	if statErr == nil && readErr == nil && info.Mode() == 0o755 && bytes.Equal(there, program) {
		return path, nil
	}
	file, err := os.CreateTemp(cfg.BinDir, ".noop-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(file.Name())
	if _, err = file.Write(program); err == nil {
		err = file.Chmod(0o755)
	}
	return path, errors.Join(err, finishAtomic(file, path, err))
}

// createNoop lets the real runc create this container with a program that does nothing in place of its own. With late
// its `start` waits for the agent: this is the late gate.
func (c *creation) createNoop(late bool) error {
	program, err := installNoop(c.cfg)
	if err == nil {
		err = rewriteBundle(c.bundle, func(data []byte) ([]byte, error) { return setProgram(data, program) })
	}
	if err == nil && late {
		err = c.markFresh(freshMark{Late: true})
	}
	if err != nil {
		return fmt.Errorf("init container %s cannot be replaced by one that does nothing: %w", c.id.container, err)
	}
	return errTransparent
}

// isGenerated says whether the operator added this init container: its own program does not exist, so it is replaced
// in every sandbox of the pod. A ticket that cannot be read names nobody: what a user wrote must start all the same.
func (c *creation) isGenerated() bool {
	content, err := readTicketContent(c.dir, "resuming")
	return err == nil && slices.Contains(content.Generated, c.id.container)
}

// setProgram returns config.json with program, mounted at noopPath, as the process.
func setProgram(data []byte, program string) ([]byte, error) {
	document, err := object(data, "process", "mounts")
	if err != nil {
		return nil, err
	}
	process, err := object(document["process"], "args")
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	var mounts []json.RawMessage
	if raw, ok := document["mounts"]; ok {
		if err := json.Unmarshal(raw, &mounts); err != nil {
			return nil, err
		}
	}
	mount, errA := encode(map[string]any{
		"destination": noopPath, "type": "bind", "source": program, "options": []string{"bind", "ro", "nosuid", "nodev"},
	})
	var errB, errC, errD error
	process["args"], errB = encode([]string{noopPath})
	document["process"], errC = encode(process)
	document["mounts"], errD = encode(append(mounts, mount))
	if err := errors.Join(errA, errB, errC, errD); err != nil {
		return nil, err
	}
	return encode(document)
}
