package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// declared returns the failpoints' Go names with their names.
func declared(t *testing.T) map[string]string {
	t.Helper()
	source, err := os.ReadFile("failpoint.go")
	must(t, err)
	found := map[string]string{}
	for _, match := range regexp.MustCompile(`(?m)^\t(at[A-Za-z]+) += "([a-z.-]+)"`).FindAllStringSubmatch(string(source), -1) {
		found[match[1]] = match[2]
	}
	return found
}

func TestEachFailpointIsInOnePlace(t *testing.T) {
	files, err := filepath.Glob("*.go")
	must(t, err)
	uses := map[string]int{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || file == "failpoint.go" {
			continue
		}
		source, err := os.ReadFile(file)
		must(t, err)
		for _, match := range regexp.MustCompile(`reach\([a-z.]+, (\w+)\)`).FindAllStringSubmatch(string(source), -1) {
			uses[match[1]]++
		}
	}
	names := declared(t)
	if len(names) == 0 {
		t.Fatal("none is declared")
	}
	for name := range names {
		if uses[name] != 1 {
			t.Errorf("%s is used %d times", name, uses[name])
		}
		delete(uses, name)
	}
	if len(uses) != 0 {
		t.Errorf("used, and not declared: %v", uses)
	}
}

func (l *lab) arm(name, deed string) {
	l.t.Helper()
	must(l.t, os.MkdirAll(filepath.Dir(l.cfg.failpoint(name)), 0o700))
	must(l.t, os.WriteFile(l.cfg.failpoint(name), []byte(deed+"\n"), 0o600))
}

// I3: whoever dies or fails, wherever it does, leaves either a tree that runs with the ticket resuming, or none.
func TestDyingAtAFailpointNeverLeavesATreeWithoutItsTicket(t *testing.T) {
	for _, name := range []string{atClaimed, atTold, atPrepared, atRecorded, atReleased, atDeciding, atResuming, atRestored} {
		for _, deed := range []string{"kill", "fail"} {
			t.Run(name+" "+deed, func(t *testing.T) {
				l := newLab(t)
				l.ticket("pending")
				a := l.agent()
				l.arm(name, deed)
				_, done := l.start("c1")
				go a.goAlong()
				rc := l.rc(done)
				if !exists(l.cfg.failpoint(name)+".hit") || exists(l.cfg.failpoint(name)) {
					t.Fatal("the failpoint was not reached, or not disarmed")
				}
				if exists(l.ticketDir() + "/resuming") {
					if deed == "fail" && rc != 0 {
						t.Fatal("failed after the decision: " + l.read("log.json"))
					}
					return // decided: it runs, or died as after any crash
				}
				// CRIU ignores how its hook at pre-resume ended, so killed there it cannot keep the tree from running
				// until the interposer looks at the ticket; the source is still frozen then.
				hasty := name == atDeciding && deed == "kill"
				if rc == 0 || (l.read("ran") != "" && !hasty) {
					t.Fatal("it ran without the decision")
				}
				for _, tree := range l.pids("tree.pid") {
					eventually(t, "the tree is dead", func() bool { return !alive(tree) })
				}
			})
		}
	}
}

// goAlong answers everybody as an agent does that wants to restore.
func (a *agent) goAlong() {
	for peer := range a.conns {
		switch {
		case peer.first["role"] == "gate":
			peer.say(a.restoreAnswer())
		case peer.first["action"] == "post-restore":
			peer.say(`{"action":"resume"}`)
		}
	}
}

func TestAHangLastsUntilTheTestTakesItAway(t *testing.T) {
	l := newLab(t)
	l.ticket("pending")
	a := l.agent()
	l.arm(atClaimed, "hang")
	cmd, done := l.start("c1")
	eventually(t, "it is reached", func() bool { return exists(l.cfg.failpoint(atClaimed) + ".hit") })
	if len(done) != 0 || len(a.conns) != 0 {
		t.Fatal("it went on")
	}
	must(t, os.Remove(l.cfg.failpoint(atClaimed)+".hit"))
	a.next("gate")
	must(t, cmd.Process.Signal(syscall.SIGKILL))
	l.rc(done)
}

func TestAnUnknownDeedDoesNothing(t *testing.T) {
	l := newLab(t)
	for _, deed := range []string{"", "explode", "delay", "delay soon", "delay 0.01"} {
		l.arm(atTold, deed)
		if err := reach(&l.cfg, atTold); err != nil {
			t.Errorf("%q: %v", deed, err)
		}
	}
	l.arm(atTold, "fail")
	if err := reach(&l.cfg, atTold); err == nil {
		t.Error("it did not fail")
	}
	if err := reach(&l.cfg, atTold); err != nil {
		t.Error("it acts twice")
	}
}

// What every step of a migration pays for its failpoint.
func BenchmarkUnarmedFailpoint(b *testing.B) {
	cfg := Config{RunDir: "/run/container-migration"}
	for b.Loop() {
		_ = reach(&cfg, atTold)
	}
}
