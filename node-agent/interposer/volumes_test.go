package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// volume makes the emptyDir `data` of the target pod, and returns it.
func (l *lab) volume() string {
	dir := filepath.Join(l.cfg.KubeletPods, testUID, "volumes/kubernetes.io~empty-dir/data")
	must(l.t, os.MkdirAll(dir, 0o755))
	return dir
}

// sharedMemory makes the sandbox's bundle and its /dev/shm, and returns the latter.
func (l *lab) sharedMemory() string {
	shm, bundle := l.node+"/shm", filepath.Dir(l.bundle)+"/sandbox-1"
	must(l.t, os.MkdirAll(shm, 0o755))
	must(l.t, os.MkdirAll(bundle, 0o700))
	raw, _ := json.Marshal(map[string]any{"mounts": []map[string]string{{"destination": "/dev/shm", "source": shm}}})
	must(l.t, os.WriteFile(bundle+"/config.json", raw, 0o600))
	return shm
}

func (l *lab) shared(name string, content []byte) {
	must(l.t, os.MkdirAll(filepath.Dir(l.images)+"/_pod", 0o700))
	must(l.t, os.WriteFile(filepath.Dir(l.images)+"/_pod/"+name, content, 0o600))
}

func TestSharedVolumesAreExactlyAsTheyWereBeforeTheFirstRestore(t *testing.T) {
	p := newPod(t)
	data, shm := p.volume(), p.sharedMemory()
	must(t, os.WriteFile(data+"/left-behind", []byte("x"), 0o600))
	must(t, os.Mkdir(data+"/sub", 0o700))
	kept, err := os.Stat(data + "/sub") // what the kubelet mounts for a subPath must stay the same directory
	must(t, err)
	exact := entry(".wh..wh..opq", '0', "")
	p.shared("volume-data.tar", archive(t, entry(".", '5', ""), entry("file", '0', "disk"), entry("sub", '5', ""), entry("sub/x", '0', "y"), exact).Bytes())
	p.shared("shm.tar", archive(t, entry(".", '5', ""), entry("segment", '0', "memory"), exact).Bytes())
	p.early()
	if read(t, data+"/file") != "disk" || read(t, data+"/sub/x") != "y" || read(t, shm+"/segment") != "memory" || exists(data+"/left-behind") {
		t.Fatal("not as it was")
	}
	if again, err := os.Stat(data + "/sub"); err != nil || !os.SameFile(kept, again) {
		t.Fatal("another directory", err)
	}
	must(t, os.WriteFile(data+"/file", []byte("of the first container"), 0o600))
	p.last()
	if read(t, data+"/file") != "of the first container" {
		t.Fatal("applied again under the first container's feet")
	}
}

func TestSharedArchivesAreConfined(t *testing.T) {
	for _, name := range []string{"volume-..tar", "volume-../x.tar", "other.tar", "volume-.tar", "volume-absent.tar", "shm.tar"} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.ticket("pending")
			must(t, os.MkdirAll(filepath.Dir(l.images)+"/_pod", 0o700))
			must(t, os.WriteFile(filepath.Dir(l.images)+"/_pod/"+strings.ReplaceAll(name, "/", "_"), archive(t, entry("f", '0', "x")).Bytes(), 0o600))
			a := l.agent()
			_, done := l.start("c1")
			a.next("gate").say(a.restoreAnswer())
			if l.rc(done) != 1 || l.read("runc.log") != "" || !strings.Contains(l.read("log.json"), "shared volumes") {
				t.Fatal(l.read("log.json"))
			}
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return string(data)
}

// What the agent writes is what is applied: its own module makes the archive.
func TestAnArchiveOfTheAgentIsAppliedExactly(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run the tests as root: owners, devices and ACLs are part of it")
	}
	base := t.TempDir()
	from, to := base+"/from", base+"/to"
	script := `set -e
mkdir -p ` + from + `/dir ` + to + `; cd ` + from + `
echo one > file; ln file dir/link; ln -s nowhere sym; mkfifo pipe; chown 1000:2000 file; chmod 4751 file
setfattr -n user.colour -v blue file 2>/dev/null || python3 -c 'import os; os.setxattr("file", "user.colour", b"blue")'
truncate -s 16M sparse; printf x | dd of=sparse bs=1 seek=5000000 conv=notrunc status=none
truncate -s 1M holes-only; chmod 1777 . ; touch -d '2020-01-02 03:04:05.123456789' file dir`
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	code := `import sys; sys.path[:0] = ["../src", "../../operator/api/src"]
import pathlib
from migration_agent.checkpoint.rootfs import write_exact
with open(sys.argv[2], "wb") as file:
    write_exact(pathlib.Path(sys.argv[1]), file)`
	if out, err := exec.Command("../../.venv/bin/python", "-c", code, from, base+"/a.tar").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if info, err := os.Stat(base + "/a.tar"); err != nil || info.Size() > 1<<20 {
		t.Fatal("holes were written: ", info.Size(), err)
	}
	must(t, applyArchive(to, base+"/a.tar"))
	list := func(dir string) string {
		out, err := exec.Command("sh", "-c", "cd "+dir+` && find . -printf '%p %y %m %U:%G %s %T@ %n %l\n' | sort && md5sum file sparse holes-only dir/link`).Output()
		must(t, err)
		return string(out)
	}
	if a, b := list(from), list(to); a != b {
		t.Fatalf("not the same:\n%s\n%s", a, b)
	}
	var status syscall.Stat_t
	must(t, syscall.Stat(to+"/sparse", &status))
	if status.Blocks*512 > 1<<20 {
		t.Fatalf("the holes are gone: %d blocks", status.Blocks)
	}
	value := make([]byte, 16)
	if n, err := syscall.Getxattr(to+"/file", "user.colour", value); err != nil || string(value[:n]) != "blue" {
		t.Fatal(string(value), err)
	}
}
