package main

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestTheProgramThatDoesNothingNeedsNothing(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		program, err := noopProgram(arch)
		must(t, err)
		file, err := elf.NewFile(bytes.NewReader(program))
		must(t, err)
		if file.Machine != machine || file.Type != elf.ET_EXEC || file.Progs[0].Filesz != uint64(len(program)) || file.Progs[1].Flags&elf.PF_X != 0 {
			t.Fatal(arch, file)
		}
		if libraries, err := file.ImportedLibraries(); len(libraries) != 0 {
			t.Fatal(libraries, err)
		}
	}
	cfg := &Config{BinDir: t.TempDir()}
	path, err := installNoop(cfg)
	must(t, err)
	if out, err := exec.Command(path).CombinedOutput(); err != nil || len(out) != 0 {
		t.Fatal(err, string(out))
	}
	must(t, os.WriteFile(path, []byte("damaged"), 0o700))
	_, err = installNoop(cfg)
	must(t, err)
	if exec.Command(path).Run() != nil {
		t.Fatal("it was not repaired")
	}
	if _, err := noopProgram("s390x"); err == nil {
		t.Fatal("a program for an unknown machine")
	}
}

// initBundle gives the container what a runtime writes for an init container, and returns it.
func (l *lab) initBundle() map[string]any {
	var config map[string]any
	must(l.t, json.Unmarshal([]byte(l.read("bundle/config.json")), &config))
	config["process"] = map[string]any{
		"args": []any{"sh", "-c", "echo ran"}, "cwd": "/work", "env": []any{"A=b"}, "user": map[string]any{"uid": 1234.0, "gid": 5.0},
		"noNewPrivileges": true,
	}
	config["root"] = map[string]any{"path": "rootfs", "readonly": true}
	config["mounts"] = []any{map[string]any{"destination": "/proc", "type": "proc", "source": "proc"}}
	config["linux"] = map[string]any{"seccomp": map[string]any{"defaultAction": "SCMP_ACT_ERRNO"}}
	raw, _ := json.Marshal(config)
	must(l.t, os.WriteFile(l.bundle+"/config.json", raw, 0o600))
	return config
}

func (l *lab) config() map[string]any {
	var config map[string]any
	must(l.t, json.Unmarshal([]byte(l.read("bundle/config.json")), &config))
	return config
}

func (l *lab) created() bool { return strings.Contains(l.read("runc.log"), " create ") }

// replaced is the bundle as it must be with the program that does nothing: all else as it was.
func (l *lab) replaced(before map[string]any) map[string]any {
	before["process"].(map[string]any)["args"] = []any{noopPath}
	before["mounts"] = append(before["mounts"].([]any), map[string]any{
		"destination": noopPath, "type": "bind", "source": filepath.Join(l.cfg.BinDir, "noop"), "options": []any{"bind", "ro", "nosuid", "nodev"},
	})
	return before
}

func TestOnTheAgentsWordAnInitContainerDoesNothing(t *testing.T) {
	l := newLab(t)
	l.ticket("pending", "other")
	before := l.initBundle()
	_, done := l.start("c1")
	l.agent().next("gate").say(`{"action":"noop"}`)
	if l.rc(done) != 0 || !l.created() {
		t.Fatal(l.read("log.json"))
	}
	if got := l.config(); !reflect.DeepEqual(got, l.replaced(before)) {
		t.Fatal(got)
	}
	info, err := os.Stat(l.cfg.BinDir + "/noop")
	must(t, err)
	if info.Mode() != 0o755 {
		t.Fatal("another user cannot execute it", info.Mode())
	}
	// Its start is an ordinary one.
	must(t, l.startCommand().Run())
	if !l.started() {
		t.Fatal("it was not started")
	}
}

func TestAnInitContainerIsNotCreatedWithoutTheAgentsWord(t *testing.T) {
	for _, ticket := range []string{"", "pending", "destroyed"} {
		l := newLab(t)
		if ticket != "" {
			l.ticket(ticket, "other")
		}
		l.initBundle()
		before := l.read("bundle/config.json")
		l.cfg.Deadline = 200_000_000
		if _, done := l.start("c1"); l.rc(done) != 1 || l.created() || l.read("bundle/config.json") != before {
			t.Fatal(ticket, l.read("log.json"))
		}
	}
}

func TestAfterResumingOnlyWhatTheOperatorAddedDoesNothing(t *testing.T) {
	for _, row := range []struct {
		ticket string
		noop   bool
	}{
		{`{"migration":"m1","containers":["other"],"generated":["app"]}`, true},
		{`{"migration":"m1","containers":["other"],"generated":["another"]}`, false},
		{`{"migration":"m1","containers":["other"]}`, false},
		{`damaged`, false},
	} {
		l := newLab(t)
		l.ticket("resuming", "other")
		must(t, os.WriteFile(l.ticketDir()+"/resuming", []byte(row.ticket), 0o600))
		want := l.initBundle()
		if row.noop {
			want = l.replaced(want)
		}
		if _, done := l.start("c1"); l.rc(done) != 0 || !l.created() {
			t.Fatal(row, l.read("log.json"))
		}
		if got := l.config(); !reflect.DeepEqual(got, want) {
			t.Fatal(row, got)
		}
	}
}

func TestABundleThatCannotBeUnderstoodIsNotCreated(t *testing.T) {
	for _, text := range []string{`{"Process":{"args":[]},`, `{"process":{"Args":["sh"]},`, `{"process":null,`, `{`} {
		l := newLab(t)
		l.ticket("pending", "other")
		raw := l.read("bundle/config.json")
		must(t, os.WriteFile(l.bundle+"/config.json", []byte(text+raw[1:]), 0o600))
		_, done := l.start("c1")
		l.agent().next("gate").say(`{"action":"noop"}`)
		if l.rc(done) != 1 || l.created() || !strings.Contains(l.read("log.json"), "does nothing") {
			t.Fatal(text, l.read("log.json"))
		}
	}
}

// lateGate brings the container to the late gate: created, its start has returned, and what it left behind waits.
func (l *lab) lateGate(a *agent) *agentPeer {
	l.t.Helper()
	l.initBundle()
	_, done := l.start("c1")
	a.next("gate").say(`{"action":"noop","late":true}`)
	if l.rc(done) != 0 || !l.created() {
		l.t.Fatal(l.read("log.json"))
	}
	must(l.t, os.MkdirAll(l.dir+"/runcroot/c1", 0o700))
	must(l.t, l.startCommand().Run())
	waiting := a.next("start")
	if waiting.first["container"] != "app" || l.started() {
		l.t.Fatal(waiting.first)
	}
	return waiting
}

func TestTheLateGateOpensOnTheAgentsWord(t *testing.T) {
	l := newLab(t)
	l.ticket("pending", "other")
	a := l.agent()
	l.lateGate(a).say(`{"action":"anything"}`)
	again := a.next("start") // what it does not know opens nothing
	again.Close()
	last := a.next("start") // nor does an agent that goes away
	if l.started() || l.command(nil, "--root", "/r", "exec", "c1").Run() == nil {
		t.Fatal("it was started, or something was executed in it, before the copy was complete")
	}
	last.say(`{"action":"go"}`)
	eventually(t, "it ends", l.started)
}

func TestTheLateGateOfADestroyedTicketNeverOpens(t *testing.T) {
	l := newLab(t)
	l.ticket("pending", "other")
	waiting := l.lateGate(l.agent())
	must(t, os.Rename(l.ticketDir()+"/pending", l.ticketDir()+"/destroyed"))
	if waiting.line() != nil || l.started() {
		t.Fatal("it waits on, or was started")
	}
}

func TestOnlyTheLateGateListensToTheAgent(t *testing.T) {
	l := newLab(t)
	l.ticket("pending", "other")
	a := l.agent()
	l.fresh(a, false)
	must(t, l.startCommand().Run())
	a.next("start").say(`{"action":"go"}`)
	a.next("start")
	if l.started() {
		t.Fatal("I3: a left out container was started before the commit")
	}
}
