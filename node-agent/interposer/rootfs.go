package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"syscall"
)

// limits bound what an archive may ask of the node; nothing in a checkpoint is believed because it is in the checkpoint.
type limits struct {
	entries int
	bytes   int64
}

var productionLimits = limits{entries: 2 << 20, bytes: 256 << 30}

// differ applies an OCI layer to a root file system. Every path is walked one component at a time from the root's
// descriptor without following any symbolic link (stricter than os.Root, which follows those that stay inside): a change
// recorded by overlayfs never lies behind one.
type differ struct {
	root    int
	limits  limits
	entries int
	bytes   int64
	seen    map[string]bool // what this archive made, with parents: an opaque mark spares it
	dirs    []*tar.Header   // metadata of directories is set last, since each entry in them changes their mtime
	parent  struct {        // the last parent directory, open: archives go directory by directory
		path string
		fd   int
	}
}

// endTracker notices when the archive simply stops. archive/tar takes that for the end, but a whole archive ends with two
// empty blocks, after which nothing more is read.
type endTracker struct {
	source io.Reader
	ended  bool
}

func (e *endTracker) Read(buffer []byte) (int, error) {
	n, err := e.source.Read(buffer)
	e.ended = e.ended || errors.Is(err, io.EOF)
	return n, err
}

// applyDiff unpacks the archive onto the directory root.
func applyDiff(root string, archive io.Reader, bounds limits) error {
	fd, err := syscall.Open(root, dirFlags, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", root, err)
	}
	defer syscall.Close(fd)
	d := &differ{root: fd, limits: bounds, seen: map[string]bool{}}
	defer d.forgetParent()
	input := &endTracker{source: bufio.NewReaderSize(archive, 1<<20)}
	for reader := tar.NewReader(input); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			if input.ended {
				return errors.New("the archive is cut off")
			}
			return d.finishDirs()
		}
		if err != nil {
			return fmt.Errorf("the archive cannot be read: %w", err)
		}
		if err := d.apply(header, reader); err != nil {
			return fmt.Errorf("%q: %w", shorten(header.Name, 200), err)
		}
	}
}

// cleanName returns the path relative to the root, "." for the root itself. It refuses instead of repairing: no archive
// of ours holds an absolute path or `..`.
func cleanName(name string) (string, error) {
	if strings.HasPrefix(name, "/") || strings.ContainsRune(name, 0) || len(name) > 4096 || name == "" {
		return "", errors.New("not a relative path")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "..":
			return "", errors.New("the path leaves the root file system")
		case len(part) > 255:
			return "", errors.New("a name in the path is too long")
		case part != "" && part != ".":
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 {
		return ".", nil
	}
	return strings.Join(parts, "/"), nil
}

// apply handles one entry.
func (d *differ) apply(header *tar.Header, content io.Reader) error {
	if d.entries++; d.entries > d.limits.entries {
		return fmt.Errorf("more than %d entries", d.limits.entries)
	}
	if d.bytes += max(0, header.Size); d.bytes > d.limits.bytes {
		return fmt.Errorf("more than %d bytes", d.limits.bytes)
	}
	name, err := cleanName(header.Name)
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	dir = path.Clean(dir) // "" becomes "."
	if strings.HasPrefix(base, whiteoutPrefix) {
		return d.whiteout(dir, base)
	}
	if header.Typeflag == tar.TypeChar && header.Devmajor == 0 && header.Devminor == 0 {
		return d.whiteout(dir, whiteoutPrefix+base) // overlayfs' own form
	}
	if name == "." && header.Typeflag != tar.TypeDir {
		return errors.New("the root of the file system is not a directory")
	}
	parent, err := d.openParent(dir, true)
	if err != nil {
		return err
	}
	d.mark(name)
	return d.create(parent, name, base, header, content)
}

// mark remembers name and its parents.
func (d *differ) mark(name string) {
	for ; !d.seen[name]; name = path.Dir(name) {
		d.seen[name] = true
		if name == "." {
			return
		}
	}
}

// create makes the entry base in parent.
func (d *differ) create(parent int, name, base string, header *tar.Header, content io.Reader) error {
	if header.Typeflag == tar.TypeDir {
		header.Name = name
		d.dirs = append(d.dirs, header)
		return makeDir(parent, base)
	}
	// The source of a hard link is found before its new name is cleared.
	if header.Typeflag == tar.TypeLink {
		return d.hardLink(name, base, header.Linkname)
	}
	if err := removeAll(parent, base); err != nil {
		return err
	}
	var err error
	switch header.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		err = writeFile(parent, base, content, isSparse(header))
	case tar.TypeSymlink:
		err = symlinkAt(header.Linkname, parent, base)
	case tar.TypeFifo:
		err = syscall.Mknodat(parent, base, syscall.S_IFIFO|0o600, 0)
	default:
		// A device made in a container gives the same rights on another node's different hardware.
		return fmt.Errorf("entries of type %q are not allowed (a device node, for instance)", header.Typeflag)
	}
	if err != nil {
		return err
	}
	return setMetadata(parent, base, header)
}

// hardLink links to a file of the root file system, never through a symbolic link.
func (d *differ) hardLink(name, base, target string) error {
	from, err := cleanName(target)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", shorten(target, 200), err)
	}
	if from == name || from == "." {
		return errors.New("a hard link to itself or to the root")
	}
	dir, fromBase := path.Split(from)
	source, err := d.walk(path.Clean(dir), false)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", shorten(target, 200), err)
	}
	defer syscall.Close(source)
	parent, err := d.openParent(path.Clean(path.Dir(name)), true)
	if err != nil {
		return err
	}
	if err := removeAll(parent, base); err != nil {
		return err
	}
	return linkAt(source, fromBase, parent, base)
}

// finishDirs sets the directories' metadata, the deepest last entries first. A later entry of the archive may have put
// something else in a directory's place, a symbolic link for instance: then there is nothing to set.
func (d *differ) finishDirs() error {
	for i := len(d.dirs) - 1; i >= 0; i-- {
		fd, err := d.walk(d.dirs[i].Name, false)
		if err != nil {
			continue
		}
		err = setMetadata(fd, ".", d.dirs[i])
		syscall.Close(fd)
		if err != nil {
			return fmt.Errorf("%q: %w", shorten(d.dirs[i].Name, 200), err)
		}
	}
	return nil
}
