package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestPassThroughIsByteExact(t *testing.T) {
	l := newLab(t)
	for _, args := range [][]string{
		{"--version"}, {}, {"--root", "/r", "state", "id"}, {"kill", "--all", "id", "9"}, {"exec", "--process", "create", "id"},
		{"--root=/x", "--unknown-global", "delete", "--force", "id"}, {"start", "id"}, {"exec", "id", "odd \x01 \xff arg", ""},
		{"--log", "create", "features"},
	} {
		os.Remove(l.dir + "/call.json")
		cmd := l.command([]string{"ODD=a\nb=\xfe", "EMPTY="}, args...)
		cmd.Args[0] = "/some/where/runc"
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v %s", args, err, out)
		}
		var call struct{ Argv, Env []string }
		must(t, json.Unmarshal([]byte(l.read("call.json")), &call))
		var want struct{ Argv, Env []string }
		raw, _ := json.Marshal(map[string][]string{"argv": cmd.Args, "env": cmd.Env})
		json.Unmarshal(raw, &want)
		if !slices.Equal(call.Argv, want.Argv) {
			t.Errorf("argv %q", call.Argv)
		}
		if !slices.Equal(call.Env, want.Env) {
			t.Errorf("environment %q", call.Env)
		}
	}
}

func TestUnmarkedCreateIsPassedThrough(t *testing.T) {
	l := newLab(t)
	l.spec("container", false)
	before := l.read("bundle/config.json")
	_, done := l.start("c1")
	if l.rc(done) != 0 || !strings.Contains(l.read("runc.log"), " create ") || exists(l.ticketDir()) || l.read("bundle/config.json") != before {
		t.Fatal("not transparent")
	}
}

func TestSandboxMarksThePod(t *testing.T) {
	l := newLab(t)
	l.spec("sandbox", true)
	_, done := l.start("s1")
	if l.rc(done) != 0 || !strings.Contains(l.read("runc.log"), " create ") {
		t.Fatal("the sandbox must start")
	}
	info, err := os.Stat(l.ticketDir())
	must(t, err)
	if info.Mode().Perm() != 0o700 || !exists(l.ticketDir()+"/marked") {
		t.Fatal("not marked")
	}
	// The annotation goes, the mark stays.
	l.spec("container", false)
	l.cfg.Deadline = 300 * time.Millisecond
	if _, done := l.start("c1"); l.rc(done) != 1 {
		t.Fatal("a container of a marked pod started")
	}
}

func TestTicketTable(t *testing.T) {
	for _, row := range []struct {
		ticket  []string
		rc      int
		created bool
		says    string
	}{
		{[]string{"resuming"}, 0, true, ""},
		{[]string{"destroyed"}, 1, false, "aborted"},
		{[]string{"pending"}, 1, false, "no permission in time"},
		{nil, 1, false, "no permission in time"},
		{[]string{"resuming", "destroyed"}, 1, false, "both"},
		{[]string{"pending", "destroyed"}, 1, false, "aborted"},
	} {
		t.Run(strings.Join(row.ticket, "+"), func(t *testing.T) {
			l := newLab(t)
			l.cfg.Deadline = 300 * time.Millisecond
			for _, name := range row.ticket {
				l.ticket(name)
			}
			_, done := l.start("c1")
			rc := l.rc(done)
			if rc != row.rc || strings.Contains(l.read("runc.log"), " create ") != row.created || !strings.Contains(l.read("log.json"), row.says) {
				t.Fatalf("rc %d, runc %q, log %q", rc, l.read("runc.log"), l.read("log.json"))
			}
		})
	}
}

func TestRefusalIsRuncsJSON(t *testing.T) {
	l := newLab(t)
	l.ticket("destroyed")
	cmd := l.command(nil, l.createArgs("c1")...)
	out, _ := cmd.CombinedOutput()
	var line struct {
		Level, Msg string
		Time       time.Time
	}
	must(t, json.Unmarshal([]byte(l.read("log.json")), &line))
	if line.Level != "error" || !strings.Contains(line.Msg, "delete the pod") || line.Time.IsZero() || !strings.Contains(string(out), line.Msg) {
		t.Fatalf("%+v %s", line, out)
	}
}

func TestBadIdentitiesAreRefusedWhenMarked(t *testing.T) {
	for name, edit := range map[string][2]string{
		"uid": {testUID, "../../etc"}, "container": {`"app"`, `"../x"`}, "type": {`"container"`, `"other"`},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.cfg.Deadline = time.Second
			text := strings.Replace(l.read("bundle/config.json"), edit[0], edit[1], 1)
			must(t, os.WriteFile(l.bundle+"/config.json", []byte(text), 0o600))
			if _, done := l.start("c1"); l.rc(done) != 1 {
				t.Fatal("started")
			}
			if exists(l.dir + "/etc") {
				t.Fatal("wrote outside")
			}
		})
	}
}

func TestRunAndRestoreAreNoWayAround(t *testing.T) {
	l := newLab(t)
	for _, args := range [][]string{
		{"run", "--bundle", l.bundle, "c1"}, {"restore", "-b", l.bundle, "--image-path=/x", "c1"},
		{"create", "--new-option", "--bundle=" + l.bundle, "c1"}, {"--new-global", "x", "create", "-b", l.bundle, "c1"},
	} {
		if err := l.command(nil, args...).Run(); err == nil {
			t.Errorf("%q was let through", args)
		}
	}
	l.spec("container", false)
	must(t, l.command(nil, "create", "--new-option", "--bundle="+l.bundle, "c1").Run())
}

func TestGateAnswers(t *testing.T) {
	for name, row := range map[string][2]string{
		"refuse":    {`{"action":"refuse","message":"because of X","extra":1}`, "because of X"},
		"unknown":   {`{"action":"dance"}`, "does not know"},
		"malformed": {`{"action":`, "malformed"},
		"binary":    {"\x00\xff", "malformed"},
		"array":     {"[]", "malformed"},
		"long":      {strings.Repeat("x", 80<<10), "malformed"},
		"pass":      {`{"action":"pass"}`, "not `resuming`"},
		"outside":   {`{"action":"restore","imageDir":"/etc"}`, "not a directory below"},
		"dots":      {`{"action":"restore","imageDir":"RUN/images/../../x"}`, "not a directory below"},
		"missing":   {`{"action":"restore","imageDir":"RUN/images/m2/app"}`, "no such file"},
		"option":    {`{"action":"restore","imageDir":"RUN/images/m1/app","options":["exec-cmd"]}`, "does not allow"},
		"injection": {`{"action":"restore","imageDir":"RUN/images/m1/app","options":["tcp-close\naction-script /x"]}`, "does not allow"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.ticket("pending")
			a := l.agent()
			_, done := l.start("c1")
			gate := a.next("gate")
			for _, field := range []string{"podUID", "namespace", "pod", "migration", "container", "containerID", "bundle", "pid", "deadlineBoottimeNs"} {
				if _, ok := gate.first[field]; !ok {
					t.Errorf("%s is missing in %v", field, gate.first)
				}
			}
			gate.say(strings.ReplaceAll(row[0], "RUN", l.cfg.RunDir))
			if l.rc(done) != 1 || !strings.Contains(l.read("log.json"), row[1]) || l.read("runc.log") != "" && name != "x" {
				t.Fatalf("log %q runc %q", l.read("log.json"), l.read("runc.log"))
			}
		})
	}
}

func TestPassLooksAtTheDisk(t *testing.T) {
	l := newLab(t)
	l.ticket("pending")
	a := l.agent()
	_, done := l.start("c1")
	gate := a.next("gate")
	must(t, os.Rename(l.ticketDir()+"/pending", l.ticketDir()+"/resuming"))
	gate.say(`{"action":"pass"}`)
	if l.rc(done) != 0 || !strings.Contains(l.read("runc.log"), " create ") {
		t.Fatal("not transparent")
	}
}

func TestAgentRestartWhileGated(t *testing.T) {
	l := newLab(t)
	_, done := l.start("c1") // no agent at all yet
	time.Sleep(200 * time.Millisecond)
	a := l.agent()
	gate := a.next("gate")
	a.listener.Close()
	gate.Close()
	time.Sleep(200 * time.Millisecond)
	b := l.agent()
	b.next("gate").say(`{"action":"refuse","message":"second"}`)
	if l.rc(done) != 1 || !strings.Contains(l.read("log.json"), "second") {
		t.Fatal(l.read("log.json"))
	}
}

func TestForeignSocketIsNotTrusted(t *testing.T) {
	l := newLab(t)
	l.cfg.Owner, l.cfg.Deadline = os.Getuid()+1, 300*time.Millisecond
	l.agent()
	if _, done := l.start("c1"); l.rc(done) != 1 || !strings.Contains(l.read("log.json"), "not a socket of root") {
		t.Fatal(l.read("log.json"))
	}
}

func TestSecondCreateWaitsForTheClaim(t *testing.T) {
	l := newLab(t)
	l.ticket("pending")
	a := l.agent()
	first, firstDone := l.start("c1")
	a.next("gate")
	_, secondDone := l.start("c2")
	select {
	case peer := <-a.conns:
		t.Fatalf("two at the gate: %v", peer.first)
	case <-time.After(500 * time.Millisecond):
	}
	must(t, first.Process.Kill())
	l.rc(firstDone)
	gate := a.next("gate")
	if gate.first["containerID"] != "c2" {
		t.Fatal(gate.first)
	}
	gate.say(`{"action":"refuse","message":"enough"}`)
	l.rc(secondDone)
}

func TestClaimHasTheDeadline(t *testing.T) {
	l := newLab(t)
	a := l.agent()
	l.start("c1")
	defer a.next("gate").Close()
	l.cfg.Deadline = 300 * time.Millisecond
	if _, done := l.start("c2"); l.rc(done) != 1 || !strings.Contains(l.read("log.json"), "older create") {
		t.Fatal(l.read("log.json"))
	}
}

func TestConcurrentClaims(t *testing.T) {
	l := newLab(t)
	must(t, os.MkdirAll(l.ticketDir(), 0o700))
	path := l.ticketDir() + "/app.claim"
	results := make(chan *os.File, 16)
	for range cap(results) {
		go func() { file, _ := tryClaim(path); results <- file }()
	}
	held := 0
	var files []*os.File
	for range cap(results) {
		if file := <-results; file != nil {
			held++
			files = append(files, file)
		}
	}
	if held != 1 {
		t.Fatalf("%d claims", held)
	}
	_ = files
}

func TestClaimOfARemovedFileIsNone(t *testing.T) {
	dir := t.TempDir()
	old, err := tryClaim(filepath.Join(dir, "app.claim"))
	if old == nil {
		t.Fatal(err)
	}
	must(t, os.Remove(old.Name()))
	fresh, err := tryClaim(filepath.Join(dir, "app.claim"))
	if fresh == nil || os.SameFile(stat(t, old), stat(t, fresh)) {
		t.Fatal(err)
	}
}

func stat(t *testing.T, file *os.File) os.FileInfo {
	info, err := file.Stat()
	must(t, err)
	return info
}

func TestStartAndDelete(t *testing.T) {
	l := newLab(t)
	must(t, os.MkdirAll(filepath.Dir(l.cfg.restored("c1")), 0o700))
	must(t, os.WriteFile(l.cfg.restored("c1"), nil, 0o600))
	must(t, l.command(nil, "--root", "/r", "start", "c1").Run())
	if l.read("runc.log") != "" {
		t.Fatal("start of a restored container reached runc")
	}
	must(t, l.command(nil, "start", "c2").Run())
	must(t, l.command(nil, "start", "../restored/c1").Run())
	must(t, l.command(nil, "delete", "--force", "c1").Run())
	if exists(l.cfg.restored("c1")) || strings.Count(l.read("runc.log"), "\n") != 3 {
		t.Fatal(l.read("runc.log"))
	}
	must(t, l.command(nil, "start", "c1").Run())
}

func TestTransparentStartKillsAForgottenTree(t *testing.T) {
	l := newLab(t)
	l.ticket("resuming")
	tree, err := os.StartProcess("/bin/sleep", []string{"sleep", "100"}, &os.ProcAttr{})
	must(t, err)
	must(t, writeTree(l.ticketDir(), "app", "c0", tree.Pid))
	if _, done := l.start("c1"); l.rc(done) != 0 {
		t.Fatal("not transparent")
	}
	if state, _ := tree.Wait(); state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatal("two copies")
	}
}
