package main

import (
	"errors"
	"path"
	"strings"
	"syscall"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// whiteout deletes what the image has: one name, or everything in a directory but what this archive put there.
func (d *differ) whiteout(dir, base string) error {
	parent, err := d.openParent(dir, false)
	if errors.Is(err, syscall.ENOENT) {
		return nil // nothing to delete
	}
	if err != nil {
		return err
	}
	if base == whiteoutOpaque {
		return d.emptyDir(parent, dir)
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if strings.HasPrefix(base, whiteoutMeta) || name == "" || name == "." || name == ".." {
		return errors.New("an unknown whiteout")
	}
	return removeAll(parent, name)
}

// emptyDir is the opaque mark. Directories of this archive stay, but what the image has in them goes, too.
func (d *differ) emptyDir(fd int, dir string) error {
	names, err := listDir(fd)
	if err != nil {
		return err
	}
	for _, base := range names {
		name := path.Join(dir, base)
		if !d.seen[name] {
			if err := removeAll(fd, base); err != nil {
				return err
			}
			continue
		}
		child, err := syscall.Openat(fd, base, dirFlags, 0)
		if err != nil {
			continue // of this archive and not a directory
		}
		err = d.emptyDir(child, name)
		syscall.Close(child)
		if err != nil {
			return err
		}
	}
	return nil
}
