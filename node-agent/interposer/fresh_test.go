package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// fresh brings a left out container to the point where it is created; last says whether it is the pod's last one.
func (l *lab) fresh(a *agent, last bool) {
	l.t.Helper()
	_, done := l.start("c1")
	a.next("gate").say(fmt.Sprintf(`{"action":"fresh","last":%v}`, last))
	if l.rc(done) != 0 || !strings.Contains(l.read("runc.log"), " create ") {
		l.t.Fatal(l.read("log.json"))
	}
	must(l.t, os.MkdirAll(l.dir+"/runcroot/c1", 0o700)) // what runc keeps of a container
}

func (l *lab) startCommand() *exec.Cmd {
	return l.command(nil, "--root", l.dir+"/runcroot", "--log", l.log, "--log-format", "json", "start", "c1")
}

func (l *lab) started() bool { return strings.Contains(l.read("runc.log"), " start c1") }

func TestALeftOutContainerStartsAfterTheCommit(t *testing.T) {
	for _, last := range []bool{false, true} {
		t.Run(fmt.Sprintf("last=%v", last), func(t *testing.T) {
			l := newLab(t)
			l.ticket("pending", "other")
			a := l.agent()
			l.fresh(a, last)
			start := l.startCommand()
			must(t, start.Start())
			done := make(chan int, 1)
			go func() { start.Wait(); done <- start.ProcessState.ExitCode() }()
			if waiting := a.next("start"); waiting.first["container"] != "app" || waiting.first["containerID"] != "c1" {
				t.Fatal(waiting.first)
			}
			select {
			case <-done:
				if last {
					t.Fatal("the last one did not block")
				}
			case <-time.After(300 * time.Millisecond):
				if !last {
					t.Fatal("start blocks")
				}
			}
			if l.started() {
				t.Fatal("it started before the commit")
			}
			must(t, os.Rename(l.ticketDir()+"/pending", l.ticketDir()+"/resuming"))
			eventually(t, "it starts", l.started)
			if last && l.rc(done) != 0 {
				t.Fatal(l.read("log.json"))
			}
		})
	}
}

func TestALeftOutContainerOfADestroyedTicketNeverStarts(t *testing.T) {
	for _, last := range []bool{false, true} {
		t.Run(fmt.Sprintf("last=%v", last), func(t *testing.T) {
			l := newLab(t)
			l.ticket("pending", "other")
			a := l.agent()
			l.fresh(a, last)
			start := l.startCommand()
			must(t, start.Start())
			waiting := a.next("start")
			must(t, os.Rename(l.ticketDir()+"/pending", l.ticketDir()+"/destroyed"))
			if waiting.line() != nil {
				t.Fatal("it waits on")
			}
			start.Wait()
			if code := start.ProcessState.ExitCode(); last && (code != 1 || !strings.Contains(l.read("log.json"), "aborted")) {
				t.Fatal(code, l.read("log.json"))
			}
			if l.started() {
				t.Fatal("it started")
			}
		})
	}
}

func TestAStarterEndsWithItsContainerAndComesBackToANewAgent(t *testing.T) {
	l := newLab(t)
	l.ticket("pending", "other")
	a := l.agent()
	l.fresh(a, false)
	must(t, l.startCommand().Run())
	a.next("start").Close()
	a.next("start").Close()
	a.listener.Close()
	waiting := l.agent().next("start")
	must(t, os.RemoveAll(l.dir+"/runcroot/c1"))
	if waiting.line() != nil {
		t.Fatal("it waits on")
	}
	must(t, os.Rename(l.ticketDir()+"/pending", l.ticketDir()+"/resuming"))
	time.Sleep(200 * time.Millisecond)
	if l.started() {
		t.Fatal("it started a container that is gone")
	}
}

func TestTheLastLeftOutContainersStartHasTheDeadline(t *testing.T) {
	l := newLab(t)
	l.ticket("pending", "other")
	l.fresh(l.agent(), true)
	l.cfg.Deadline = 300 * time.Millisecond
	if l.startCommand().Run() == nil || l.started() || !strings.Contains(l.read("log.json"), "in time") {
		t.Fatal(l.read("log.json"))
	}
}

func TestADamagedMarkFailsClosed(t *testing.T) {
	l := newLab(t)
	l.ticket("pending", "other")
	l.fresh(l.agent(), false)
	must(t, os.WriteFile(l.cfg.fresh("c1"), []byte("{"), 0o600))
	if l.startCommand().Run() == nil || l.started() {
		t.Fatal("it started")
	}
}

func TestNothingIsExecutedInAContainerThatMayNotRunYet(t *testing.T) {
	l := newLab(t)
	l.ticket("pending", "other")
	l.fresh(l.agent(), false)
	must(t, os.MkdirAll(l.cfg.RunDir+"/restored", 0o700))
	must(t, os.WriteFile(l.cfg.restored("c2"), []byte(testUID+"\n"), 0o600))
	run := func(id string) error {
		return l.command(nil, "--root", "/r", "--log", l.log, "exec", "--process", "/tmp/p", "-u", "1", "--detach", id).Run()
	}
	for _, id := range []string{"c1", "c2"} {
		if run(id) == nil || strings.Contains(l.read("runc.log"), " exec ") {
			t.Fatal("executed in " + id)
		}
	}
	must(t, run("c3"))
	must(t, os.Rename(l.ticketDir()+"/pending", l.ticketDir()+"/resuming"))
	must(t, run("c1"))
	must(t, run("c2"))
	must(t, os.RemoveAll(l.ticketDir())) // swept, long after
	must(t, run("c2"))
}
