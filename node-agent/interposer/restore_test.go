package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRestoreHoldsThenResumes(t *testing.T) {
	holdThenResume(t, newLab(t))
}

// A checkpoint that does not fit into memory lies on the disk.
func TestRestoreFromTheDisk(t *testing.T) {
	l := newLab(t)
	l.images = l.dir + "/state/images/m1/app"
	l.prepare()
	must(t, os.RemoveAll(l.dir+"/run/images"))
	holdThenResume(t, l)
}

func holdThenResume(t *testing.T, l *lab) {
	l.ticket("pending")
	a := l.agent()
	_, done, gate, hook, tree := a.held("c1")
	if !alive(tree) || l.read("ran") != "" || !exists(l.ticketDir()+"/pending") {
		t.Fatal("not held")
	}
	if hook.first["action"] != "post-restore" || int(hook.first["initPID"].(float64)) != tree || hook.first["container"] != "app" {
		t.Fatal(hook.first)
	}
	hook.say(`{"action":"resume"}`)
	if a.next("hook").first["action"] != "pre-resume" {
		t.Fatal("no pre-resume")
	}
	if event := gate.line(); event["event"] != "restored" {
		t.Fatal(event)
	}
	if l.rc(done) != 0 {
		t.Fatal(l.read("log.json"))
	}
	eventually(t, "the container runs", func() bool { return l.read("ran") == "ran\n" })
	if exists(l.ticketDir()+"/pending") || !exists(l.ticketDir()+"/resuming") || !isRestored(&l.cfg, "c1") {
		t.Fatal("ticket or mark")
	}
	checkRestoreCall(t, l)
}

func checkRestoreCall(t *testing.T, l *lab) {
	want := "--root " + l.dir + "/runcroot --log " + l.log + " --log-format json --systemd-cgroup restore --detach --bundle " + l.bundle +
		" --pid-file " + l.dir + "/pid --file-locks --image-path " + l.images + "/images --work-path " + l.images +
		"/work --manage-cgroups-mode ignore c1"
	if got := strings.TrimSpace(l.read("runc.log")); got != want {
		t.Errorf("runc was called with\n%s\nnot\n%s", got, want)
	}
	if !strings.HasPrefix(l.read("path.log"), l.cfg.BinDir+":") {
		t.Error("our criu is not first in PATH: " + l.read("path.log"))
	}
	conf := l.read("run/criu/c1.conf")
	if conf != "action-script "+l.cfg.Self+"\nnetwork-lock skip\ntcp-close\nfile-locks\n" {
		t.Errorf("criu configuration %q", conf)
	}
	for _, path := range []string{l.images + "/hook.json", l.cfg.criuConf("c1"), l.cfg.restored("c1"), treeFile(l.ticketDir(), "app")} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", path, info, err)
		}
	}
}

// Every way in which a hold ends must end the tree before it ran one instruction.
func TestLosingTheHoldKillsTheTree(t *testing.T) {
	for name, lose := range map[string]func(l *lab, interposer *os.Process, hook *agentPeer){
		"kill answer":      func(_ *lab, _ *os.Process, hook *agentPeer) { hook.say(`{"action":"kill","message":"aborted"}`) },
		"malformed":        func(_ *lab, _ *os.Process, hook *agentPeer) { hook.say(`{"action":`) },
		"unknown":          func(_ *lab, _ *os.Process, hook *agentPeer) { hook.say(`{}`) },
		"agent gone":       func(_ *lab, _ *os.Process, hook *agentPeer) { hook.Close() },
		"interposer died":  func(_ *lab, interposer *os.Process, _ *agentPeer) { interposer.Kill() },
		"criu died":        func(l *lab, _ *os.Process, _ *agentPeer) { syscall.Kill(l.pids("criu.pid")[0], syscall.SIGKILL) },
		"hook died":        func(_ *lab, _ *os.Process, hook *agentPeer) { killFrom(hook) },
		"ticket destroyed": destroyAndResume,
		"bundle gone": func(l *lab, _ *os.Process, hook *agentPeer) {
			os.RemoveAll(l.bundle)
			hook.say(`{"action":"resume"}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.ticket("pending")
			a := l.agent()
			cmd, done, _, hook, tree := a.held("c1")
			lose(l, cmd.Process, hook)
			eventually(t, "the tree is dead", func() bool { return !alive(tree) })
			if l.rc(done) == 0 || l.read("ran") != "" || exists(l.ticketDir()+"/resuming") {
				t.Fatal("it ran, or create succeeded: " + l.read("ran"))
			}
		})
	}
}

func killFrom(hook *agentPeer) {
	syscall.Kill(int(hook.first["pid"].(float64)), syscall.SIGKILL)
}

func destroyAndResume(l *lab, _ *os.Process, hook *agentPeer) {
	must(l.t, os.Rename(l.ticketDir()+"/pending", l.ticketDir()+"/destroyed"))
	hook.say(`{"action":"resume"}`)
}

func TestDeadlineKillsTheHeldTree(t *testing.T) {
	l := newLab(t)
	l.cfg.Deadline = 1500 * time.Millisecond
	l.ticket("pending")
	_, done, _, _, tree := l.agent().held("c1")
	if l.rc(done) != 1 || alive(tree) || l.read("ran") != "" || !strings.Contains(l.read("log.json"), "deadline") {
		t.Fatal(l.read("log.json"))
	}
}

func TestDestroyedBetweenResumeAndPreResume(t *testing.T) {
	l := newLab(t)
	l.ticket("pending")
	_, done, gate, hook, tree := l.agent().held("c1", "FAKE_WAIT=1")
	hook.say(`{"action":"resume"}`)
	eventually(t, "post-restore ended", func() bool { return l.read("released") != "" })
	must(t, os.Rename(l.ticketDir()+"/pending", l.ticketDir()+"/destroyed"))
	must(t, os.WriteFile(l.dir+"/go-on", nil, 0o600))
	// CRIU ignores the hook and runc returns 0: the interposer must not believe it.
	if event := gate.line(); event["event"] != "failed" || !strings.Contains(event["message"].(string), "not pending") {
		t.Fatal(event)
	}
	if l.rc(done) != 1 || alive(tree) || l.read("ran") != "" {
		t.Fatal("it ran")
	}
}

func TestInterposerKilledBetweenResumeAndPreResume(t *testing.T) {
	l := newLab(t)
	l.ticket("pending")
	cmd, done, _, hook, tree := l.agent().held("c1", "FAKE_WAIT=1")
	hook.say(`{"action":"resume"}`)
	eventually(t, "post-restore ended", func() bool { return l.read("released") != "" })
	must(t, cmd.Process.Kill())
	l.rc(done)
	must(t, os.WriteFile(l.dir+"/go-on", nil, 0o600))
	eventually(t, "the tree is dead", func() bool { return !alive(tree) })
	if l.read("ran") != "" || exists(l.ticketDir()+"/resuming") {
		t.Fatal("it ran")
	}
}

func TestCriuDiesBetweenTheHooks(t *testing.T) {
	l := newLab(t)
	l.ticket("pending")
	a := l.agent()
	_, done, gate, hook, tree := a.held("c1", "FAKE_FAIL=between")
	hook.say(`{"action":"resume"}`)
	if event := gate.line(); event["event"] != "failed" {
		t.Fatal(event)
	}
	if l.rc(done) != 1 || alive(tree) || exists(l.ticketDir()+"/resuming") {
		t.Fatal("the forgotten tree lives")
	}
	// The kubelet's retry may restore again.
	_, done, _, hook, _ = a.held("c2")
	hook.say(`{"action":"resume"}`)
	if l.rc(done) != 0 {
		t.Fatal(l.read("log.json"))
	}
}

func TestFailureAfterResumingIsAnOrdinaryCrash(t *testing.T) {
	l := newLab(t)
	l.ticket("pending")
	_, done, _, hook, tree := l.agent().held("c1", "FAKE_FAIL=late")
	hook.say(`{"action":"resume"}`)
	if l.rc(done) != 1 || alive(tree) || !exists(l.ticketDir()+"/resuming") {
		t.Fatal("not a crash")
	}
	if _, done := l.start("c2"); l.rc(done) != 0 || !strings.Contains(l.read("runc.log"), " create ") {
		t.Fatal("the retry is not an ordinary start")
	}
}

func TestRestoreFailureSaysWhy(t *testing.T) {
	l := newLab(t)
	l.ticket("pending")
	a := l.agent()
	_, done := l.start("c1", "FAKE_FAIL=early")
	gate := a.next("gate")
	gate.say(a.restoreAnswer())
	event := gate.line()
	if event["event"] != "failed" || !strings.Contains(event["message"].(string), "Connected TCP socket in image") ||
		strings.Contains(event["message"].(string), "all is well") {
		t.Fatal(event)
	}
	if l.rc(done) != 1 || !strings.Contains(l.read("log.json"), "Connected TCP socket in image") || isRestored(&l.cfg, "c1") {
		t.Fatal(l.read("log.json"))
	}
	if !strings.Contains(l.read("runc.log"), "delete --force c1") {
		t.Fatal("not cleaned up: " + l.read("runc.log"))
	}
}

func TestRestoreSurvivesTheAgentsDeathWhileRestoring(t *testing.T) {
	l := newLab(t)
	l.ticket("pending")
	a := l.agent()
	_, done := l.start("c1")
	gate := a.next("gate")
	gate.say(a.restoreAnswer())
	gate.Close()
	a.next("hook").say(`{"action":"resume"}`)
	if l.rc(done) != 0 {
		t.Fatal(l.read("log.json"))
	}
}

func TestHookWaitsForAnAgentThatRestarts(t *testing.T) {
	l := newLab(t)
	l.ticket("pending")
	a := l.agent()
	_, done := l.start("c1")
	gate := a.next("gate")
	a.listener.Close()
	gate.say(a.restoreAnswer())
	eventually(t, "the tree is there", func() bool { return l.read("tree.pid") != "" })
	time.Sleep(300 * time.Millisecond)
	l.agent().next("hook").say(`{"action":"resume"}`)
	if l.rc(done) != 0 {
		t.Fatal(l.read("log.json"))
	}
}

// The agent destroys while the hook resumes: exactly one of them may win, and the tree runs only if the hook did.
func TestRenameRace(t *testing.T) {
	for range 2000 {
		dir := t.TempDir()
		must(t, os.WriteFile(dir+"/pending", nil, 0o600))
		start, agentWon, hookWon := make(chan bool), make(chan bool, 1), make(chan bool, 1)
		go func() {
			<-start
			agentWon <- os.Rename(dir+"/pending", dir+"/destroyed") == nil
		}()
		go func() {
			<-start
			renamed, _ := startResuming(dir)
			hookWon <- renamed
		}()
		close(start)
		agent, hook := <-agentWon, <-hookWon
		state, err := readTicket(dir)
		if agent == hook || err != nil || hook != (state == ticketResuming) {
			t.Fatal(agent, hook, state, err)
		}
	}
}

func TestImageDirectoryIsConfined(t *testing.T) {
	for name, spoil := range map[string]func(l *lab){
		"no inventory": func(l *lab) { os.Remove(l.images + "/images/inventory.img") },
		"inventory is a link": func(l *lab) {
			os.Remove(l.images + "/images/inventory.img")
			os.Symlink("/etc/passwd", l.images+"/images/inventory.img")
		},
		"a link on the way": func(l *lab) {
			os.Rename(l.images, l.dir+"/elsewhere")
			os.Symlink(l.dir+"/elsewhere", l.images)
		},
		"others may write": func(l *lab) { os.Chmod(filepath.Dir(l.images), 0o777) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.ticket("pending")
			spoil(l)
			a := l.agent()
			_, done := l.start("c1")
			a.next("gate").say(a.restoreAnswer())
			if l.rc(done) != 1 || l.read("runc.log") != "" || !strings.Contains(l.read("log.json"), "cannot be used") {
				t.Fatal(l.read("log.json"))
			}
		})
	}
}

func TestPostDump(t *testing.T) {
	for answer, rc := range map[string]int{`{"action":"done"}`: 0, `{"action":"fail","message":"x"}`: 1, "": 1, "junk": 1} {
		l := newLab(t)
		raw, _ := json.Marshal(map[string]string{"socket": l.cfg.socket(), "migration": "m1", "container": "app"})
		must(t, os.WriteFile(l.images+"/hook.json", raw, 0o600))
		a := l.agent()
		hook := l.command([]string{"CRTOOLS_SCRIPT_ACTION=post-dump", "CRTOOLS_IMAGE_DIR=" + l.images + "/images"})
		must(t, hook.Start())
		peer := a.next("hook")
		if answer == "" {
			peer.Close()
		} else {
			peer.say(answer)
		}
		hook.Wait()
		for _, absent := range []string{"podUID", "containerID", "initPID"} {
			if value, there := peer.first[absent]; there {
				t.Fatalf("a dump's hook says %s: %v, which it does not know", absent, value)
			}
		}
		if got := hook.ProcessState.ExitCode(); got != rc || peer.first["action"] != "post-dump" || peer.first["migration"] != "m1" {
			t.Errorf("%q: %d %v", answer, got, peer.first)
		}
	}
}

func TestOtherHookActions(t *testing.T) {
	l := newLab(t)
	for _, action := range []string{"pre-dump", "network-lock", "post-resume", "anything"} {
		must(t, l.command([]string{"CRTOOLS_SCRIPT_ACTION=" + action}).Run())
	}
	// A dump by somebody else, with images in another place, is none of our business.
	must(t, l.command([]string{"CRTOOLS_SCRIPT_ACTION=post-dump", "CRTOOLS_IMAGE_DIR=" + l.bundle}).Run())
	for _, pid := range []string{"", "0", "1", "-1", "x"} {
		env := []string{"CRTOOLS_SCRIPT_ACTION=post-restore", "CRTOOLS_INIT_PID=" + pid, "CRTOOLS_IMAGE_DIR=" + l.images + "/images"}
		if l.command(env).Run() == nil {
			t.Errorf("pid %q accepted", pid)
		}
	}
}
