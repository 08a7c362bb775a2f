package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseCommand(t *testing.T) {
	for line, want := range map[string]command{
		"--root /r --log=/l --log-format json --systemd-cgroup create --bundle /b --pid-file=/p --no-pivot id": {sub: "create", id: "id",
			globals: strings.Fields("--root /r --log=/l --log-format json --systemd-cgroup"),
			options: map[string]string{"root": "/r", "log": "/l", "log-format": "json", "systemd-cgroup": "", "bundle": "/b", "pid-file": "/p", "no-pivot": ""}},
		"-root create start id":                     {sub: "start", id: "id", globals: []string{"-root", "create"}, options: map[string]string{"root": "create"}},
		"--rootless=auto --debug create -b /b id":   {sub: "create", id: "id", globals: []string{"--rootless=auto", "--debug"}, options: map[string]string{"rootless": "auto", "debug": "", "b": "/b"}},
		"create id --bundle /b --preserve-fds 3":    {sub: "create", id: "id", options: map[string]string{"bundle": "/b", "preserve-fds": "3"}},
		"create --no-new-keyring -- id":             {sub: "create", id: "id", options: map[string]string{"no-new-keyring": ""}},
		"delete --force id":                         {sub: "delete", id: "id", options: map[string]string{"force": ""}},
		"create --console-socket=/s --no-pivot=0 i": {sub: "create", id: "i", options: map[string]string{"console-socket": "/s"}},
		"--version": {options: map[string]string{"version": ""}},
	} {
		got, err := parseCommand(strings.Fields(line))
		if err != nil || got.sub != want.sub || got.id != want.id || !slices.Equal(got.globals, want.globals) || len(got.options) != len(want.options) {
			t.Errorf("%s: %+v %v", line, got, err)
		}
		for name, value := range want.options {
			if got.options[name] != value {
				t.Errorf("%s: %s is %q", line, name, got.options[name])
			}
		}
	}
	for _, line := range []string{"--new create", "create --new id", "--root", "create --bundle"} {
		if _, err := parseCommand(strings.Fields(line)); err == nil {
			t.Error(line)
		}
	}
}

func TestIdentifyBothRuntimes(t *testing.T) {
	for _, annotations := range []map[string]string{
		{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-uid": "u", "io.kubernetes.cri.container-name": "c",
			"io.kubernetes.cri.sandbox-namespace": "n", "io.kubernetes.cri.sandbox-name": "p"},
		{"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.pod.uid": "u", "io.kubernetes.container.name": "c",
			"io.kubernetes.pod.namespace": "n", "io.kubernetes.pod.name": "p"},
	} {
		want := identity{kind: "container", podUID: "u", namespace: "n", pod: "p", container: "c"}
		if id := identify(annotations, ""); id != want {
			t.Errorf("%+v", id)
		}
	}
	if id := identify(map[string]string{migrationAnnotation: ""}, ""); !id.annotated {
		t.Error("an empty mark is a mark")
	}
}

func TestSetAnnotationKeepsTheRest(t *testing.T) {
	in := `{"big":18446744073709551615,"exact":1.10000000000000000001,"html":"<&>","annotations":{"org.criu.config":"/evil","a":"b"},"linux":{"limit":9007199254740993}}`
	out, err := setAnnotation([]byte(in), criuAnnotation, "/run/x.conf")
	must(t, err)
	for _, want := range []string{"18446744073709551615", "1.10000000000000000001", "<&>", "9007199254740993", `"a":"b"`, `"org.criu.config":"/run/x.conf"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s is not in %s", want, out)
		}
	}
	if strings.Contains(string(out), "/evil") {
		t.Error("trusted")
	}
	for _, in := range []string{`{}`, `{"annotations":null}`} {
		out, err := setAnnotation([]byte(in), "k", "v")
		if err != nil || string(out) != `{"annotations":{"k":"v"}}` {
			t.Errorf("%s: %s %v", in, out, err)
		}
	}
	for _, in := range []string{``, `[]`, `null`, `{"Annotations":{}}`, `{"annotations":[]}`} {
		if out, err := setAnnotation([]byte(in), "k", "v"); err == nil {
			t.Errorf("%s: %s", in, out)
		}
	}
}

func TestAnnotateBundleKeepsModeAndOwner(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/config.json", []byte(`{}`), 0o600))
	must(t, os.Chmod(dir+"/config.json", 0o640))
	uid := os.Getuid()
	if uid == 0 {
		uid = 1234
		must(t, os.Chown(dir+"/config.json", uid, uid))
	}
	must(t, annotateBundle(dir, "/c"))
	info, err := os.Stat(dir + "/config.json")
	must(t, err)
	if info.Mode().Perm() != 0o640 || int(info.Sys().(*syscall.Stat_t).Uid) != uid {
		t.Fatal(info.Mode())
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Fatal(names)
	}
}

func TestParseStat(t *testing.T) {
	stat, err := parseStat([]byte("12 (a) b) (c) S 7 " + strings.Repeat("0 ", 17) + "4711 0 0"))
	if err != nil || stat.parent != 7 || stat.start != 4711 || stat.state != 'S' {
		t.Fatal(stat, err)
	}
	for _, bad := range []string{"", ")", "1 (x) S", "1 (x) S a " + strings.Repeat("0 ", 20)} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q", bad)
		}
	}
}

// A tree in a shared pid namespace: the descendants die too, those of another session as well.
func TestKillTreeWithoutItsOwnNamespace(t *testing.T) {
	out := t.TempDir() + "/pids"
	tree, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "(sleep 100 & setsid sh -c 'sleep 101 & echo $! >> " + out +
		"; wait' & echo $! >> " + out + "; wait) & echo $! >> " + out + "; wait"}, &os.ProcAttr{Env: os.Environ()})
	must(t, err)
	go tree.Wait()
	var pids []int
	eventually(t, "three processes", func() bool {
		raw, _ := os.ReadFile(out)
		pids = nil
		for _, field := range strings.Fields(string(raw)) {
			pid, err := parsePID(field)
			must(t, err)
			pids = append(pids, pid)
		}
		return len(pids) == 3
	})
	must(t, killTree(tree.Pid))
	for _, pid := range append(pids, tree.Pid) {
		eventually(t, "dead", func() bool { return !alive(pid) })
	}
	if killTree(1) == nil || killTree(0) == nil {
		t.Fatal("killed init")
	}
}

func TestRecordedTreeOfAnotherBootOrProcessIsSpared(t *testing.T) {
	dir := t.TempDir()
	child, err := os.StartProcess("/bin/sleep", []string{"sleep", "100"}, &os.ProcAttr{})
	must(t, err)
	defer func() { child.Kill(); child.Wait() }()
	stat, err := readStat(child.Pid)
	must(t, err)
	for _, record := range []treeRecord{{child.Pid, stat.start + 1, bootID(), "c"}, {child.Pid, stat.start, "other", "c"}} {
		raw, _ := json.Marshal(record)
		must(t, os.WriteFile(treeFile(dir, "app"), raw, 0o600))
		must(t, killRecordedTree(dir, "app"))
	}
	time.Sleep(50 * time.Millisecond)
	if !alive(child.Pid) {
		t.Fatal("killed a stranger")
	}
	must(t, os.WriteFile(treeFile(dir, "app"), []byte("junk"), 0o600))
	if killRecordedTree(dir, "app") == nil {
		t.Fatal("an unreadable record must stop the start")
	}
}
