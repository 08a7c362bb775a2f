package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const (
	dirFlags          = syscall.O_RDONLY | syscall.O_DIRECTORY | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	atSymlinkNofollow = 0x100
	xattrPrefix       = "SCHILY.xattr."
)

// forgetParent closes the remembered parent; called whenever its path may no longer mean the same directory.
func (d *differ) forgetParent() {
	if d.parent.path != "" {
		syscall.Close(d.parent.fd)
		d.parent.path = ""
	}
}

// openParent returns a descriptor that stays open until the next call.
func (d *differ) openParent(dir string, create bool) (int, error) {
	if d.parent.path == dir {
		return d.parent.fd, nil
	}
	fd, err := d.walk(dir, create)
	if err != nil {
		return -1, err
	}
	d.forgetParent()
	d.parent.path, d.parent.fd = dir, fd
	return fd, nil
}

// walk opens a directory below the root, component by component, and may make missing ones.
func (d *differ) walk(dir string, create bool) (int, error) {
	fd, err := syscall.Openat(d.root, ".", dirFlags, 0)
	if err != nil || dir == "." {
		return fd, err
	}
	for part := range strings.SplitSeq(dir, "/") {
		next, err := syscall.Openat(fd, part, dirFlags, 0)
		if errors.Is(err, syscall.ENOENT) && create {
			if err = syscall.Mkdirat(fd, part, 0o755); err == nil {
				next, err = syscall.Openat(fd, part, dirFlags, 0)
			}
		}
		syscall.Close(fd)
		if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
			return -1, fmt.Errorf("%q in the path is a symbolic link or no directory", part)
		}
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

// below names an entry of an open directory for calls that take only a path. The kernel resolves the descriptor.
func below(parent int, base string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", parent, base) }

// makeDir makes base a directory and keeps an existing one with its content.
func makeDir(parent int, base string) error {
	if base == "" || base == "." {
		return nil
	}
	info, err := os.Lstat(below(parent, base))
	if err == nil && info.IsDir() {
		return nil
	}
	if err := removeAll(parent, base); err != nil {
		return err
	}
	return syscall.Mkdirat(parent, base, 0o700)
}

// removeAll removes an entry with everything below it; os.Root keeps the walk inside the parent.
func removeAll(parent int, base string) error {
	if base == "" || base == "." || base == ".." {
		return errors.New("refusing to replace the root")
	}
	if err := syscall.Unlinkat(parent, base); err == nil || errors.Is(err, syscall.ENOENT) {
		return nil
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", parent))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(base)
}

func listDir(fd int) ([]string, error) {
	dir, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Readdirnames(-1)
}

// writeFile makes a new file; it never writes into one that is there.
func writeFile(parent int, base string, content io.Reader, sparse bool) error {
	flags := syscall.O_WRONLY | syscall.O_CREAT | syscall.O_EXCL | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	fd, err := syscall.Openat(parent, base, flags, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), base)
	if sparse {
		err = copySparse(file, content)
	} else {
		_, err = io.Copy(file, content)
	}
	return errors.Join(err, file.Close())
}

// isSparse says whether the file had holes: the reader fills them with zeros, and only then zeros become holes again.
func isSparse(header *tar.Header) bool {
	return header.Typeflag == tar.TypeGNUSparse || header.PAXRecords["GNU.sparse.realsize"] != ""
}

// copySparse leaves a hole for every block of zeros.
func copySparse(file *os.File, content io.Reader) error {
	var zeros, block [4096]byte
	size := int64(0)
	for {
		n, err := io.ReadFull(content, block[:])
		if n > 0 && !bytes.Equal(block[:n], zeros[:n]) {
			if _, err := file.WriteAt(block[:n], size); err != nil {
				return err
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return file.Truncate(size)
		}
		if err != nil {
			return err
		}
	}
}

func symlinkAt(target string, parent int, base string) error {
	to, errA := syscall.BytePtrFromString(target)
	name, errB := syscall.BytePtrFromString(base)
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	return errnoOf(syscall.Syscall(syscall.SYS_SYMLINKAT, uintptr(unsafe.Pointer(to)), uintptr(parent), uintptr(unsafe.Pointer(name))))
}

func linkAt(source int, from string, parent int, base string) error {
	old, errA := syscall.BytePtrFromString(from)
	name, errB := syscall.BytePtrFromString(base)
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	return errnoOf(syscall.Syscall6(syscall.SYS_LINKAT, uintptr(source), uintptr(unsafe.Pointer(old)), uintptr(parent),
		uintptr(unsafe.Pointer(name)), 0, 0))
}

func errnoOf(_, _ uintptr, errno syscall.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

// setMetadata restores owner, mode, extended attributes and times, in this order: a change of owner clears set-uid bits
// and capabilities, and everything changes the times.
func setMetadata(parent int, base string, header *tar.Header) error {
	if err := syscall.Fchownat(parent, base, header.Uid, header.Gid, atSymlinkNofollow); err != nil {
		return fmt.Errorf("owner: %w", err)
	}
	if header.Typeflag != tar.TypeSymlink {
		// Follows links, but this entry was made just now as something else and nothing runs here yet.
		if err := syscall.Fchmodat(parent, base, uint32(header.Mode)&0o7777, 0); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	for record, value := range header.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrPrefix)
		if !ok || skippedXattr(name) {
			continue
		}
		if err := setXattr(below(parent, base), name, value); err != nil {
			return fmt.Errorf("extended attribute %s: %w", shorten(name, 80), err)
		}
	}
	return setTimes(parent, base, header)
}

// skippedXattr: overlayfs' own bookkeeping must not be forged into the target's overlay, and the SELinux label is the
// one that the target's runtime gives.
func skippedXattr(name string) bool {
	return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") || name == "security.selinux"
}

func setXattr(file, name, value string) error {
	filePtr, errA := syscall.BytePtrFromString(file)
	namePtr, errB := syscall.BytePtrFromString(name)
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	return errnoOf(syscall.Syscall6(syscall.SYS_LSETXATTR, uintptr(unsafe.Pointer(filePtr)), uintptr(unsafe.Pointer(namePtr)),
		uintptr(unsafe.Pointer(unsafe.StringData(value))), uintptr(len(value)), 0, 0))
}

func setTimes(parent int, base string, header *tar.Header) error {
	name, err := syscall.BytePtrFromString(base)
	if err != nil {
		return err
	}
	accessed := header.AccessTime
	if accessed.IsZero() {
		accessed = header.ModTime
	}
	times := [2]syscall.Timespec{timespec(accessed), timespec(header.ModTime)}
	err = errnoOf(syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(parent), uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(&times)), atSymlinkNofollow, 0, 0))
	if err != nil {
		return fmt.Errorf("times: %w", err)
	}
	return nil
}

func timespec(t time.Time) syscall.Timespec {
	return syscall.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
