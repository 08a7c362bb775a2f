package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

var mtime = time.Unix(1700000000, 125748670)

func entry(name string, kind byte, body string) *tar.Header {
	header := &tar.Header{Name: name, Typeflag: kind, Mode: 0o640, ModTime: mtime, Uid: os.Getuid(), Gid: os.Getgid(), Format: tar.FormatPAX}
	switch kind {
	case tar.TypeReg:
		header.Size = int64(len(body))
		header.PAXRecords = map[string]string{"VENDOR.body": body}
	case tar.TypeDir:
		header.Mode = 0o751
	default:
		header.Linkname = body
	}
	return header
}

func archive(t *testing.T, headers ...*tar.Header) *bytes.Buffer {
	t.Helper()
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for _, header := range headers {
		body := header.PAXRecords["VENDOR.body"]
		must(t, writer.WriteHeader(header))
		if header.Typeflag == tar.TypeReg {
			_, err := writer.Write([]byte(body))
			must(t, err)
		}
	}
	must(t, writer.Close())
	return &buffer
}

func rootfs(t *testing.T) (root, outside string) {
	base := t.TempDir()
	root, outside = base+"/root", base+"/outside"
	for _, dir := range []string{root + "/lower/sub", root + "/opq/keep", outside} {
		must(t, os.MkdirAll(dir, 0o755))
	}
	for _, name := range []string{root + "/lower/gone", root + "/lower/sub/x", root + "/opq/old", root + "/opq/keep/old", outside + "/victim"} {
		must(t, os.WriteFile(name, []byte("old"), 0o644))
	}
	must(t, os.Symlink(outside, root+"/escape"))
	must(t, os.Symlink("../outside", root+"/relative"))
	return root, outside
}

func TestDiffContent(t *testing.T) {
	root, _ := rootfs(t)
	must(t, applyDiff(root, archive(t, entry("./", tar.TypeDir, ""),
		entry("dir/", tar.TypeDir, ""), entry("dir/file", tar.TypeReg, "new"), entry("dir/hard", tar.TypeLink, "dir/file"),
		entry("dir/link", tar.TypeSymlink, "/etc/passwd"), entry("dir/fifo", tar.TypeFifo, ""),
		entry("lower/.wh.gone", tar.TypeReg, ""), entry("lower/.wh.sub", tar.TypeReg, ""), entry("nowhere/.wh.x", tar.TypeReg, ""),
		entry("opq/", tar.TypeDir, ""), entry("opq/keep/", tar.TypeDir, ""), entry("opq/keep/new", tar.TypeReg, "n"),
		entry("opq/.wh..wh..opq", tar.TypeReg, ""), entry("missing/parent/file", tar.TypeReg, "m"),
		entry("escape", tar.TypeReg, "now a file"),
	), productionLimits))
	for name, want := range map[string]string{"dir/file": "new", "dir/hard": "new", "opq/keep/new": "n", "missing/parent/file": "m", "escape": "now a file"} {
		if raw, err := os.ReadFile(root + "/" + name); err != nil || string(raw) != want {
			t.Errorf("%s: %q %v", name, raw, err)
		}
	}
	for _, name := range []string{"lower/gone", "lower/sub", "opq/old", "opq/keep/old", "lower/.wh.gone", "nowhere"} {
		if exists(root + "/" + name) {
			t.Errorf("%s is there", name)
		}
	}
	for name, mode := range map[string]os.FileMode{"dir": 0o751 | os.ModeDir, "dir/file": 0o640, "dir/fifo": 0o640 | os.ModeNamedPipe} {
		info, err := os.Lstat(root + "/" + name)
		must(t, err)
		if info.Mode() != mode || !info.ModTime().Equal(mtime) {
			t.Errorf("%s: %v %v", name, info.Mode(), info.ModTime())
		}
	}
	a, _ := os.Stat(root + "/dir/file")
	b, _ := os.Stat(root + "/dir/hard")
	if target, _ := os.Readlink(root + "/dir/link"); !os.SameFile(a, b) || target != "/etc/passwd" {
		t.Error("links")
	}
	if info, _ := os.Lstat(root + "/dir/link"); !info.ModTime().Equal(mtime) {
		t.Error("the symbolic link's time")
	}
}

// Whatever the archive says, nothing outside the root changes.
func TestDiffCannotEscape(t *testing.T) {
	for name, headers := range map[string][]*tar.Header{
		"dotdot":               {entry("../outside/victim", tar.TypeReg, "x")},
		"inner dotdot":         {entry("lower/../../outside/victim", tar.TypeReg, "x")},
		"absolute":             {entry("/outside/victim", tar.TypeReg, "x")},
		"through a link":       {entry("escape/victim", tar.TypeReg, "x")},
		"through a relative":   {entry("relative/victim", tar.TypeReg, "x")},
		"whiteout through":     {entry("escape/.wh.victim", tar.TypeReg, "")},
		"opaque through":       {entry("escape/.wh..wh..opq", tar.TypeReg, "")},
		"own link, then below": {entry("l", tar.TypeSymlink, "../outside"), entry("l/victim", tar.TypeReg, "x")},
		"hard link out":        {entry("h", tar.TypeLink, "../outside/victim")},
		"hard link absolute":   {entry("h", tar.TypeLink, "/outside/victim")},
		"hard link through":    {entry("h", tar.TypeLink, "escape/victim")},
		"whiteout of dotdot":   {entry("lower/.wh...", tar.TypeReg, "")},
		"whiteout of nothing":  {entry(".wh.", tar.TypeReg, "")},
		"device":               {{Name: "d", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666, ModTime: mtime}},
		"char device":          {{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666, ModTime: mtime}},
		"root as file":         {entry(".", tar.TypeReg, "x")},
	} {
		t.Run(name, func(t *testing.T) {
			root, outside := rootfs(t)
			if applyDiff(root, archive(t, headers...), productionLimits) == nil {
				t.Error("accepted")
			}
			if raw, _ := os.ReadFile(outside + "/victim"); string(raw) != "old" {
				t.Errorf("victim is %q", raw)
			}
			if names, _ := filepath.Glob(filepath.Dir(root) + "/*"); len(names) != 2 {
				t.Error(names)
			}
		})
	}
}

// A directory that a later entry replaces by a link must not have its metadata set through that link.
func TestDiffMetadataDoesNotFollow(t *testing.T) {
	root, outside := rootfs(t)
	before, _ := os.Stat(outside)
	must(t, applyDiff(root, archive(t, entry("d/", tar.TypeDir, ""), entry("d", tar.TypeSymlink, "../outside")), productionLimits))
	after, _ := os.Stat(outside)
	if before.Mode() != after.Mode() || !before.ModTime().Equal(after.ModTime()) {
		t.Fatal("changed outside")
	}
	must(t, applyDiff(root, archive(t, entry("escape/", tar.TypeDir, ""), entry("escape/f", tar.TypeReg, "x")), productionLimits))
	if info, _ := os.Lstat(root + "/escape"); !info.IsDir() || exists(outside+"/f") {
		t.Fatal("a directory must replace a link")
	}
}

func TestDiffKernelWhiteoutAndLimits(t *testing.T) {
	root, _ := rootfs(t)
	must(t, applyDiff(root, archive(t, &tar.Header{Name: "lower/gone", Typeflag: tar.TypeChar}), productionLimits))
	if exists(root + "/lower/gone") {
		t.Error("whiteout")
	}
	two := func() *bytes.Buffer {
		return archive(t, entry("a", tar.TypeReg, "12345"), entry("b", tar.TypeReg, "12345"))
	}
	if applyDiff(root, two(), limits{entries: 1, bytes: 100}) == nil || applyDiff(root, two(), limits{entries: 9, bytes: 9}) == nil {
		t.Error("unbounded")
	}
	whole := two().Bytes()
	for _, size := range []int{0, 100, 512, 700, 1024, len(whole) - 2048, len(whole) - 1024} {
		if applyDiff(root, bytes.NewReader(whole[:size]), productionLimits) == nil {
			t.Errorf("an archive cut after %d of %d bytes was accepted", size, len(whole))
		}
	}
}

func TestDiffXattrs(t *testing.T) {
	root, _ := rootfs(t)
	header := entry("f", tar.TypeReg, "x")
	header.PAXRecords["SCHILY.xattr.user.a"] = "v\x001"
	header.PAXRecords["SCHILY.xattr.trusted.overlay.opaque"] = "y"
	err := applyDiff(root, archive(t, header), productionLimits)
	if errors.Is(err, syscall.ENOTSUP) {
		t.Skip("no user xattrs here")
	}
	must(t, err)
	value := make([]byte, 10)
	n, err := syscall.Getxattr(root+"/f", "user.a", value)
	if err != nil || string(value[:n]) != "v\x001" {
		t.Fatalf("%q %v", value[:max(n, 0)], err)
	}
	if n, err := syscall.Getxattr(root+"/f", "trusted.overlay.opaque", value); err == nil {
		t.Fatal("forged", n)
	}
}

func TestRestoreAppliesTheDiff(t *testing.T) {
	l := newLab(t)
	l.ticket("pending")
	must(t, os.WriteFile(l.images+"/rootfs-diff.tar", archive(t, entry("etc/new", tar.TypeReg, "n")).Bytes(), 0o600))
	_, done, _, hook, _ := l.agent().held("c1")
	if l.read("bundle/rootfs/etc/new") != "n" {
		t.Error("not applied before the restore")
	}
	hook.say(`{"action":"resume"}`)
	l.rc(done)
}
