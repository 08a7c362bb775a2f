package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// timer encodes a file_entry as CRIU writes it for a timerfd.
func timer(ticks, flags, valueSec, valueNsec, everySec, everyNsec uint64) []byte {
	return message(1, uint64(17), 2, uint64(9), 12, message(1, uint64(9), 2, uint64(2), 3, message(1, uint64(0)), 4, uint64(1),
		5, ticks, 6, flags, 7, valueSec, 8, valueNsec, 9, everySec, 10, everyNsec))
}

func TestTimersAreRestoredAsTheyWere(t *testing.T) {
	for name, it := range map[string]struct{ before, after []byte }{
		"periodic, due":                     {timer(3, 0, 0, 0, 0, 50_000_000), timer(3, 0, 0, 1, 0, 50_000_000)},
		"periodic, due, absolute":           {timer(1, 1, 0, 0, 60, 0), timer(1, 0, 0, 1, 60, 0)},
		"periodic, not due":                 {timer(1, 0, 0, 40, 0, 50), timer(1, 0, 0, 40, 0, 50)},
		"periodic, but disarmed":            {timer(0, 0, 0, 0, 0, 50), timer(0, 0, 0, 0, 0, 50)},
		"once, rung and not read":           {timer(1, 0, 0, 0, 0, 0), timer(1, 0, 0, 0, 0, 0)},
		"once, absolute, rung and read":     {timer(0, 1, 0, 0, 0, 0), timer(0, 0, 0, 0, 0, 0)},
		"once, absolute, not yet":           {timer(0, 1, 3600, 999_999_999, 0, 0), timer(0, 0, 3600, 999_999_999, 0, 0)},
		"absolute, told of a changed clock": {timer(0, 3, 3600, 7, 0, 0), timer(0, 3, 3600, 7, 0, 0)},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "files.img")
		other := message(1, uint64(1), 2, uint64(5), 3, message(1, uint64(5), 5, uint64(0), 7, uint64(0)))
		must(t, os.WriteFile(path, image(filesMagic, other, it.before, other, it.before), 0o600))
		for range 2 {
			must(t, mendTimers(dir))
			if found, _ := os.ReadFile(path); !bytes.Equal(found, image(filesMagic, other, it.after, other, it.after)) {
				t.Errorf("%s: %x", name, found)
			}
		}
	}
}

func TestThereNeedBeNoFilesAtAll(t *testing.T) {
	must(t, mendTimers(t.TempDir()))
}

func TestALinkIsNoImageOfFiles(t *testing.T) {
	dir := t.TempDir()
	elsewhere := filepath.Join(t.TempDir(), "other")
	before := image(filesMagic, timer(3, 0, 0, 0, 0, 50))
	must(t, os.WriteFile(elsewhere, before, 0o600))
	must(t, os.Symlink(elsewhere, filepath.Join(dir, "files.img")))
	if mendTimers(dir) == nil {
		t.Error("a link was taken for an image")
	}
	if found, _ := os.ReadFile(elsewhere); !bytes.Equal(found, before) {
		t.Errorf("%x", found)
	}
}

// FuzzTimers: whatever the image holds, it keeps its length, and once is enough.
func FuzzTimers(f *testing.F) {
	f.Add(timer(3, 1, 0, 0, 0, 50))
	f.Add(message(12, message(5, uint64(1), 9, uint64(1))))
	f.Add([]byte{12<<3 | 2, 6, 8 << 3, 0x80, 0, 5 << 3, 1})
	f.Fuzz(func(t *testing.T, entry []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "files.img")
		must(t, os.WriteFile(path, image(filesMagic, entry), 0o600))
		if mendTimers(dir) != nil {
			return
		}
		once, _ := os.ReadFile(path)
		must(t, mendTimers(dir))
		twice, _ := os.ReadFile(path)
		if !bytes.Equal(once, twice) || len(once) != len(entry)+12 {
			t.Fatalf("%x, then %x, of %x", once, twice, entry)
		}
	})
}
