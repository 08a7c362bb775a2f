package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pod is two containers, of which `app` returns early and `web` is the last.
type pod struct {
	*lab
	web *lab
	a   *agent
}

func newPod(t *testing.T) *pod {
	l := newLab(t)
	l.ticket("pending", "app", "web")
	return &pod{lab: l, web: l.sibling("web"), a: l.agent()}
}

func restoreAnswer(l *lab) string {
	return fmt.Sprintf(`{"action":"restore","imageDir":%q,"options":["tcp-close","file-locks"]}`, l.images)
}

// early brings `app` to the point where its create has returned.
func (p *pod) early(env ...string) (keeper int, gate, hook *agentPeer) {
	p.t.Helper()
	_, done := p.start("c1", env...)
	p.a.next("gate").say(`{"action":"keep"}`)
	gate = p.a.next("gate")
	if gate.first["keeper"] != true || gate.first["container"] != "app" || gate.first["sandboxID"] != "sandbox-1" {
		p.t.Fatal(gate.first)
	}
	gate.say(restoreAnswer(p.lab))
	hook = p.a.next("hook")
	select {
	case <-done:
		p.t.Fatal("create returned before the agent knew that the tree is held")
	case <-time.After(100 * time.Millisecond):
	}
	gate.say(fmt.Sprintf(`{"action":"held","initPID":%d}`, p.tree()))
	if rc := p.rc(done); rc != 0 {
		p.t.Fatal(rc, p.read("log.json"))
	}
	if got := p.read("pid"); got != strconv.Itoa(p.tree()) {
		p.t.Fatalf("pid file %q", got)
	}
	return int(gate.first["pid"].(float64)), gate, hook
}

// last brings `web` to the point where it is held; its create blocks.
func (p *pod) last(env ...string) (cmd *exec.Cmd, done chan int, gate, hook *agentPeer) {
	p.t.Helper()
	cmd, done = p.web.start("c2", env...)
	gate = p.a.next("gate")
	gate.say(restoreAnswer(p.web))
	return cmd, done, gate, p.a.next("hook")
}

func (p *pod) nothingRan() {
	p.t.Helper()
	eventually(p.t, "both trees are dead", func() bool { return !alive(p.tree()) && !alive(p.web.tree()) })
	if p.read("ran") != "" || p.web.read("ran") != "" || exists(p.ticketDir()+"/resuming") {
		p.t.Fatal("a container ran")
	}
}

// ready looks who is at the barrier, with the mutex as the hooks do.
func (p *pod) ready(container string) bool {
	h := hook{file: hookFile{TicketDir: p.ticketDir()}}
	mutex, err := h.lockFile("barrier", syscall.LOCK_EX)
	must(p.t, err)
	defer mutex.Close()
	return !free(p.ticketDir() + "/" + container + ".ready")
}

func free(path string) bool {
	file, _ := tryClaim(path)
	if file != nil {
		file.Close()
	}
	return file != nil
}

func TestAllButTheLastReturnEarlyAndAllRunTogether(t *testing.T) {
	p := newPod(t)
	keeper, appGate, appHook := p.early()
	if !alive(p.tree()) || p.read("ran") != "" || free(p.ticketDir()+"/app.claim") {
		t.Fatal("not held, or not claimed by the keeper")
	}
	must(t, p.command(nil, "--root", "/r", "start", "c1").Run())
	if strings.Contains(p.read("runc.log"), " start ") {
		t.Fatal("start of a held container reached runc")
	}
	_, done, webGate, webHook := p.last()
	appHook.say(`{"action":"resume"}`)
	barrier := p.a.next("hook")
	if barrier.first["action"] != "pre-resume" || barrier.first["container"] != "app" {
		t.Fatal(barrier.first)
	}
	time.Sleep(100 * time.Millisecond)
	if exists(p.ticketDir()+"/resuming") || p.read("ran") != "" {
		t.Fatal("one decided for both")
	}
	webHook.say(`{"action":"resume"}`)
	p.a.next("hook")
	for _, gate := range []*agentPeer{appGate, webGate} {
		if event := gate.line(); event["event"] != "restored" {
			t.Fatal(event)
		}
	}
	if p.rc(done) != 0 || !exists(p.ticketDir()+"/resuming") || exists(p.ticketDir()+"/pending") {
		t.Fatal(p.web.read("log.json"))
	}
	eventually(t, "both run", func() bool { return p.read("ran") == "ran\n" && p.web.read("ran") == "ran\n" })
	eventually(t, "the keeper is gone and the claim free", func() bool { return !alive(keeper) && free(p.ticketDir()+"/app.claim") })
}

// Losing one of the hooks while they wait for the release must let none run: the agent, who sees every loss, calls the
// other back.
func TestLosingOneWhileHeld(t *testing.T) {
	for name, lose := range map[string]func(p *pod, keeper int){
		"keeper":       func(_ *pod, keeper int) { syscall.Kill(keeper, syscall.SIGKILL) },
		"tree":         func(p *pod, _ int) { syscall.Kill(p.tree(), syscall.SIGKILL) },
		"criu":         func(p *pod, _ int) { syscall.Kill(p.pids("criu.pid")[0], syscall.SIGKILL) },
		"ticket":       func(p *pod, _ int) { os.Rename(p.ticketDir()+"/pending", p.ticketDir()+"/destroyed") },
		"bundle":       func(p *pod, _ int) { os.RemoveAll(p.bundle) },
		"agent's word": func(*pod, int) {},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			keeper, _, appHook := p.early()
			_, done, _, webHook := p.last()
			lose(p, keeper)
			if name == "agent's word" {
				appHook.say(`{"action":"kill","message":"lost"}`)
			}
			appHook.say(`{"action":"resume"}`)
			eventually(t, "the lost tree is dead", func() bool { return !alive(p.tree()) })
			webHook.say(`{"action":"resume"}`)
			if name != "ticket" { // which web's hook sees by itself
				barrier := p.a.next("hook")
				if barrier.first["container"] != "web" {
					t.Fatal(barrier.first)
				}
				barrier.say(`{"action":"kill","message":"app was lost"}`)
			}
			if p.rc(done) == 0 {
				t.Fatal("create succeeded")
			}
			p.nothingRan()
			eventually(t, "the claim is free", func() bool { return free(p.ticketDir() + "/app.claim") })
		})
	}
}

// At the barrier every loss of a sibling must end the other one, too, and without a word of the agent none runs.
func TestLosingOneAtTheBarrier(t *testing.T) {
	for name, lose := range map[string]func(p *pod, keeper int, barrier *agentPeer){
		"agent gone": func(_ *pod, _ int, barrier *agentPeer) { barrier.Close() },
		"agent says": func(_ *pod, _ int, barrier *agentPeer) { barrier.say(`{"action":"kill","message":"x"}`) },
		"keeper":     func(_ *pod, keeper int, _ *agentPeer) { syscall.Kill(keeper, syscall.SIGKILL) },
		"tree":       func(p *pod, _ int, _ *agentPeer) { syscall.Kill(p.tree(), syscall.SIGKILL) },
		"hook":       func(_ *pod, _ int, barrier *agentPeer) { killFrom(barrier) },
		"ticket": func(p *pod, _ int, _ *agentPeer) {
			os.Rename(p.ticketDir()+"/pending", p.ticketDir()+"/destroyed")
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			keeper, appGate, appHook := p.early()
			_, done, _, webHook := p.last()
			appHook.say(`{"action":"resume"}`)
			barrier := p.a.next("hook")
			eventually(t, "app is ready", func() bool { return p.ready("app") })
			lose(p, keeper, barrier)
			if name == "hook" {
				// CRIU ignores the hook's end and lets the tree go on: a SIGKILLed hook cannot help that, the keeper can.
				if event := appGate.line(); event["event"] != "failed" {
					t.Fatal(event)
				}
			}
			eventually(t, "the lost tree is dead", func() bool { return !alive(p.tree()) })
			webHook.say(`{"action":"resume"}`)
			if name != "ticket" { // which web's hook sees by itself
				other := p.a.next("hook")
				time.Sleep(50 * time.Millisecond)
				if exists(p.ticketDir() + "/resuming") {
					t.Fatal("it decided alone")
				}
				other.say(`{"action":"kill","message":"app was lost"}`)
			}
			if p.rc(done) == 0 || alive(p.web.tree()) || p.web.read("ran") != "" || exists(p.ticketDir()+"/resuming") {
				t.Fatal("create succeeded")
			}
		})
	}
}

func TestCreateDiesBeforeTheEarlyReturn(t *testing.T) {
	p := newPod(t)
	cmd, done := p.start("c1")
	p.a.next("gate").say(`{"action":"keep"}`)
	gate := p.a.next("gate")
	gate.say(restoreAnswer(p.lab))
	hook := p.a.next("hook")
	must(t, cmd.Process.Kill())
	p.rc(done)
	eventually(t, "keeper and tree are dead", func() bool {
		return !alive(p.tree()) && !alive(int(gate.first["pid"].(float64))) && free(p.ticketDir()+"/app.claim")
	})
	hook.say(`{"action":"resume"}`)
	if p.read("ran") != "" {
		t.Fatal("it ran")
	}
}

func TestAFailedEarlyRestoreIsRefusedByCreate(t *testing.T) {
	p := newPod(t)
	_, done := p.start("c1", "FAKE_FAIL=early")
	p.a.next("gate").say(`{"action":"keep"}`)
	gate := p.a.next("gate")
	gate.say(restoreAnswer(p.lab))
	if event := gate.line(); event["event"] != "failed" || !strings.Contains(event["message"].(string), "Connected TCP socket in image") {
		t.Fatal(event)
	}
	if p.rc(done) != 1 || !strings.Contains(p.read("log.json"), "Connected TCP socket in image") || exists(p.dir+"/pid") {
		t.Fatal(p.read("log.json"))
	}
}

func TestAKeeperThatDiesIsAFailedCreate(t *testing.T) {
	p := newPod(t)
	_, done := p.start("c1")
	p.a.next("gate").say(`{"action":"keep"}`)
	gate := p.a.next("gate")
	syscall.Kill(int(gate.first["pid"].(float64)), syscall.SIGKILL)
	if p.rc(done) != 1 || !strings.Contains(p.read("log.json"), "keeper") {
		t.Fatal(p.read("log.json"))
	}
	eventually(t, "the claim is free", func() bool { return free(p.ticketDir() + "/app.claim") })
}

func TestTheEarliestDeadlineEndsThePod(t *testing.T) {
	p := newPod(t)
	p.cfg.Deadline = 3 * time.Second
	_, _, _ = p.early()
	p.web.cfg.Deadline = 20 * time.Second
	_, done, _, webHook := p.last()
	eventually(t, "app is dead", func() bool { return !alive(p.tree()) })
	webHook.say(`{"action":"kill","message":"app was lost"}`)
	if p.rc(done) == 0 {
		t.Fatal("create succeeded")
	}
	p.nothingRan()
}

// The runtime waits until every copy of its pipe is closed; with a terminal it is nobody's standard output.
func TestAKeeperWithATerminalDoesNotHoldTheRuntimesPipe(t *testing.T) {
	p := newPod(t)
	reader, writer, err := os.Pipe()
	must(t, err)
	args := append(p.createArgs("c1"), "--console-socket", p.dir+"/console")
	cmd := p.command(nil, append(args[:len(args)-3], "--console-socket", p.dir+"/console", "c1")...)
	cmd.Stdout, cmd.Stderr = writer, writer
	must(t, cmd.Start())
	writer.Close()
	p.a.next("gate").say(`{"action":"keep"}`)
	gate := p.a.next("gate")
	gate.say(restoreAnswer(p.lab))
	p.a.next("hook")
	gate.say(fmt.Sprintf(`{"action":"held","initPID":%d}`, p.tree()))
	must(t, cmd.Wait())
	reader.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := reader.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Fatal("somebody still has the pipe: ", err)
	}
}

func TestAKeeperIsNotAskedForAnother(t *testing.T) {
	p := newPod(t)
	_, done := p.start("c1")
	p.a.next("gate").say(`{"action":"keep"}`)
	p.a.next("gate").say(`{"action":"keep"}`)
	if p.rc(done) != 1 || !strings.Contains(p.read("log.json"), "keeper for a keeper") {
		t.Fatal(p.read("log.json"))
	}
}

// Whatever the order of arrival at the barrier: one rename, all go on. Run often, since it is about races.
func TestBarrierRace(t *testing.T) {
	for round := range 20 {
		p := newPod(t)
		_, appGate, appHook := p.early()
		_, done, webGate, webHook := p.last()
		if round%2 == 0 {
			appHook, webHook = webHook, appHook
		}
		appHook.say(`{"action":"resume"}`)
		webHook.say(`{"action":"resume"}`)
		p.a.next("hook")
		p.a.next("hook")
		if p.rc(done) != 0 || appGate.line()["event"] != "restored" || webGate.line()["event"] != "restored" {
			t.Fatal(p.web.read("log.json"))
		}
		eventually(t, "both run", func() bool { return p.read("ran") != "" && p.web.read("ran") != "" })
	}
}

func TestATicketThatDoesNotNameTheContainerLetsItNotRun(t *testing.T) {
	l := newLab(t)
	l.ticket("pending", "other")
	_, done, _, hook, tree := l.agent().held("c1")
	hook.say(`{"action":"resume"}`)
	if l.rc(done) != 1 || alive(tree) || l.read("ran") != "" || exists(l.ticketDir()+"/resuming") {
		t.Fatal("it ran")
	}
}

// The agent calls one hook back at the very moment at which the other one completes the barrier: both run, or none.
func TestLeavingTheBarrierNeverLosesOneOfTwo(t *testing.T) {
	ran := 0
	for round := range 30 {
		p := newPod(t)
		_, _, appHook := p.early()
		_, done, _, webHook := p.last()
		appHook.say(`{"action":"resume"}`)
		barrier := p.a.next("hook")
		eventually(t, "app is ready", func() bool { return p.ready("app") })
		webHook.say(`{"action":"resume"}`)
		other := p.a.next("hook")
		time.Sleep(time.Duration(round%10) * time.Millisecond)
		barrier.say(`{"action":"kill","message":"app was lost"}`)
		time.Sleep(30 * time.Millisecond)
		other.say(`{"action":"kill","message":"app was lost"}`)
		rc := p.rc(done)
		if exists(p.ticketDir() + "/resuming") {
			ran++
			eventually(t, "both run", func() bool { return p.read("ran") != "" && p.web.read("ran") != "" })
			if rc != 0 || !alive(p.tree()) || !alive(p.web.tree()) {
				t.Fatal("one was killed although the ticket is resuming")
			}
			continue
		}
		if rc == 0 {
			t.Fatal("create succeeded")
		}
		p.nothingRan()
	}
	t.Logf("%d of 30 ran", ran)
}
