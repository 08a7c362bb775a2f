package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What crosses a trust boundary: the runtime's config.json and arguments, the ticket, hook.json, and the archive of a
// checkpoint. The seeds run with every `go test`; `make fuzz` looks further.

func FuzzParsers(f *testing.F) {
	f.Add([]byte(`{"annotations":{"a":"b"},"root":{"path":"r"}}`))
	f.Add([]byte(`{"annotations":{"io.kubernetes.cri.container-type":"container"},"root":{"path":"../../etc"}}`))
	f.Add([]byte(`{"annotations":[],"root":7}`))
	f.Add([]byte("--root /run/runc --log= create --bundle ../.. --pid-file -- id"))
	f.Add([]byte("create --bundle"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = parseStat(data)
		_, _ = parseIdentity(data)
		if out, err := setAnnotation(data, "k", "v"); err == nil && !json.Valid(out) {
			t.Fatalf("%q", out)
		}
		_, _ = parseCommand(strings.Fields(string(data)))
	})
}

// FuzzTicket: a ticket that cannot be read permits nothing, and is left as it is.
func FuzzTicket(f *testing.F) {
	f.Add([]byte(`{"migration":"m","containers":["main"]}`))
	f.Add([]byte(`{"containers":"main"}`))
	f.Add([]byte(`{"containers":["../../x"]}`))
	f.Add([]byte(strings.Repeat("[", 10000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "pending"), data, 0o600))
		content, err := readTicketContent(dir, "pending")
		if err == nil && !json.Valid(data) {
			t.Fatalf("%q was read as %v", data, content)
		}
		if state, err := readTicket(dir); err != nil || state != ticketPending {
			t.Fatal(state, err)
		}
	})
}

// FuzzHookFile: a hook that cannot read its file does nothing.
func FuzzHookFile(f *testing.F) {
	f.Add([]byte(`{"ticketDir":"/x","interposerPID":1,"deadlineBoottimeNs":1}`))
	f.Add([]byte(`{"interposerPID":"1"}`))
	f.Add([]byte(`{"interposerStart":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg := &Config{RunDir: t.TempDir()}
		images := filepath.Join(cfg.images(), "m", "main", "images")
		must(t, os.MkdirAll(images, 0o700))
		must(t, os.WriteFile(filepath.Join(filepath.Dir(images), "hook.json"), data, 0o600))
		h := &hook{cfg: cfg}
		if err := h.load(images); err == nil && !json.Valid(data) {
			t.Fatalf("%q was read as %v", data, h.file)
		}
	})
}

// FuzzApplyDiff: whatever an archive says, nothing outside the root is touched, no device is made, and no more is written
// than is allowed.
func FuzzApplyDiff(f *testing.F) {
	for _, headers := range hostile {
		var buffer bytes.Buffer
		writer := tar.NewWriter(&buffer)
		for _, header := range headers {
			if err := writer.WriteHeader(header); err != nil {
				f.Fatal(err)
			}
			if header.Typeflag == tar.TypeReg {
				_, _ = writer.Write(make([]byte, header.Size))
			}
		}
		if err := writer.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(buffer.Bytes())
		f.Add(buffer.Bytes()[:buffer.Len()/2])
	}
	bounds := limits{entries: 50, bytes: 1 << 16}
	f.Fuzz(func(t *testing.T, data []byte) {
		root, outside := rootfs(t)
		_ = applyDiff(root, bytes.NewReader(data), bounds)
		victim, err := os.ReadFile(filepath.Join(outside, "victim"))
		if err != nil || string(victim) != "old" {
			t.Fatalf("a file outside of the root: %q, %v", victim, err)
		}
		if others, err := os.ReadDir(outside); err != nil || len(others) != 1 {
			t.Fatalf("the directory outside of the root: %v, %v", others, err)
		}
		demandHarmless(t, root, bounds)
	})
}

func FuzzCleanName(f *testing.F) {
	for _, name := range []string{"a/b", "./", "../x", "/x", "a//b/./c", "..", "a\x00"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if clean, err := cleanName(name); err == nil && (!filepath.IsLocal(clean) || strings.ContainsRune(clean, 0)) {
			t.Fatalf("%q", clean)
		}
	})
}

func demandHarmless(t *testing.T, root string, bounds limits) {
	t.Helper()
	var written int64
	must(t, filepath.WalkDir(root, func(path string, found os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if found.Type()&os.ModeDevice != 0 {
			return errors.New(path + " is a device")
		}
		info, err := found.Info()
		if err == nil && info.Mode().IsRegular() {
			written += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	}))
	if written > 2*bounds.bytes+1<<20 {
		t.Fatalf("%d bytes were written", written)
	}
}

var hostile = [][]*tar.Header{
	{entry("plain", tar.TypeReg, ""), entry("dir/", tar.TypeDir, "")},
	{entry("../outside/victim", tar.TypeReg, "")},
	{entry("escape/victim", tar.TypeReg, "")},
	{entry("relative/.wh.victim", tar.TypeReg, "")},
	{entry("escape/.wh..wh..opq", tar.TypeReg, "")},
	{entry("link", tar.TypeLink, "../outside/victim")},
	{entry("link", tar.TypeLink, "escape/victim")},
	{entry("a", tar.TypeSymlink, "/"), entry("a/etc/passwd", tar.TypeReg, "")},
	{entry("null", tar.TypeChar, ""), {Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666}},
	{{Name: "kmem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 2, Mode: 0o666}},
	{{Name: "bomb", Typeflag: tar.TypeReg, Size: 1 << 17, Mode: 0o600}},
	{entry("..", tar.TypeDir, ""), entry(".", tar.TypeSymlink, "/")},
}
