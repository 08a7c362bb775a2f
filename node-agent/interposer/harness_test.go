package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	testUID   = "0f3c8a52-6d1e-4b7a-9c2d-1a2b3c4d5e6f"
	configEnv = "INTERPOSER_TEST_CONFIG"
)

// TestMain lets the test binary play the interposer, the hook, runc and CRIU, as real processes.
func TestMain(m *testing.M) {
	self, _ := os.Executable()
	switch {
	case os.Getenv("FAKE_ROLE") == "criu":
		os.Exit(fakeCriu())
	case filepath.Base(self) == "runc":
		os.Exit(fakeRunc())
	}
	if text := os.Getenv(configEnv); text != "" {
		var cfg Config
		if err := json.Unmarshal([]byte(text), &cfg); err != nil {
			panic(err)
		}
		os.Exit(run(&cfg, os.Args, os.Environ()))
	}
	os.Exit(m.Run())
}

func note(name, text string) {
	file, err := os.OpenFile(filepath.Join(os.Getenv("LAB"), name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		fmt.Fprintln(file, text)
		file.Close()
	}
}

// fakeRunc notes how it was called; `restore` runs the fake CRIU.
func fakeRunc() int {
	args := os.Args[1:]
	cmd, _ := parseCommand(args)
	note("runc.log", strings.Join(args, " "))
	if cmd.sub != "restore" {
		raw, _ := json.Marshal(map[string][]string{"argv": os.Args, "env": os.Environ()})
		os.WriteFile(filepath.Join(os.Getenv("LAB"), "call.json"), raw, 0o600)
		return 0
	}
	note("path.log", os.Getenv("PATH"))
	annotations := struct{ Annotations map[string]string }{}
	raw, _ := os.ReadFile(filepath.Join(cmd.options["bundle"], "config.json"))
	json.Unmarshal(raw, &annotations)
	criu := exec.Command("/proc/self/exe")
	criu.Env = append(os.Environ(), "FAKE_ROLE=criu", "FAKE_CONF="+annotations.Annotations[criuAnnotation],
		"FAKE_IMAGES="+cmd.options["image-path"], "FAKE_WORK="+cmd.options["work-path"])
	criu.Stdout, criu.Stderr = os.Stdout, os.Stderr
	if err := criu.Run(); err != nil {
		return 1
	}
	os.WriteFile(cmd.options["pid-file"], []byte("1"), 0o600)
	return 0
}

// fakeCriu makes a stopped process, runs the hooks as CRIU does and then lets the process go.
func fakeCriu() int {
	lab := os.Getenv("LAB")
	note("criu.pid", strconv.Itoa(os.Getpid()))
	os.WriteFile(filepath.Join(os.Getenv("FAKE_WORK"), "restore.log"),
		[]byte("(00.1) all is well\n(00.2) Error (criu/sk-inet.c:912): inet: Connected TCP socket in image\n"), 0o600)
	if os.Getenv("FAKE_FAIL") == "early" {
		return 1
	}
	tree := exec.Command("/bin/sh", "-c", "kill -STOP $$; echo ran >> "+lab+"/ran; exec sleep 300")
	tree.Env = []string{"PATH=/usr/bin:/bin"}
	if err := tree.Start(); err != nil {
		return 1
	}
	for stat, _ := readStat(tree.Process.Pid); stat.state != 'T'; stat, _ = readStat(tree.Process.Pid) {
		time.Sleep(time.Millisecond)
	}
	note("tree.pid", strconv.Itoa(tree.Process.Pid))
	dir, _ := os.Open(os.Getenv("FAKE_IMAGES"))
	if hookRC(dir, "post-restore", tree.Process.Pid) != 0 {
		tree.Process.Kill()
		return 1
	}
	note("released", "1")
	if os.Getenv("FAKE_FAIL") == "between" {
		tree.Process.Signal(syscall.SIGCONT) // what a dying tracer does to its tracees
		return 1
	}
	for os.Getenv("FAKE_WAIT") != "" && !exists(filepath.Join(lab, "go-on")) {
		time.Sleep(5 * time.Millisecond)
	}
	hookRC(dir, "pre-resume", tree.Process.Pid) // CRIU ignores the result
	tree.Process.Signal(syscall.SIGCONT)
	if os.Getenv("FAKE_FAIL") == "late" {
		return 1
	}
	return 0
}

func hookRC(dir *os.File, action string, initPID int) int {
	conf, _ := os.ReadFile(os.Getenv("FAKE_CONF"))
	script := strings.TrimPrefix(strings.Split(string(conf), "\n")[0], "action-script ")
	hook := exec.Command(script)
	hook.Env = append(os.Environ(), "FAKE_ROLE=", "CRTOOLS_SCRIPT_ACTION="+action, "CRTOOLS_INIT_PID="+strconv.Itoa(initPID),
		fmt.Sprintf("CRTOOLS_IMAGE_DIR=/proc/%d/fd/%d", os.Getpid(), dir.Fd()))
	hook.Stdout, hook.Stderr = os.Stdout, os.Stderr
	hook.Run()
	return hook.ProcessState.ExitCode()
}

// lab is one container on a node in a temporary directory.
type lab struct {
	t      *testing.T
	name   string
	node   string // the node's directory
	dir    string // this container's
	cfg    Config
	bundle string
	images string
	log    string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "ip") // short: a socket's path has 108 bytes
	must(t, err)
	self, err := os.Executable()
	must(t, err)
	l := &lab{t: t, name: "app", node: dir, dir: dir, bundle: dir + "/bundle", images: dir + "/run/images/m1/app", log: dir + "/log.json"}
	l.cfg = Config{StateDir: dir + "/state", RunDir: dir + "/run", BinDir: dir + "/bin", SearchDirs: dir + "/sbin",
		Owner: os.Getuid(), Deadline: 20 * time.Second, Self: self,
		KubeletPods: dir + "/pods"}
	for _, path := range []string{dir + "/sbin", dir + "/bin", dir + "/state"} {
		must(t, os.MkdirAll(path, 0o700))
	}
	binary, err := os.ReadFile(self) // a copy: a link would have the interposer's inode and be skipped
	must(t, err)
	must(t, os.WriteFile(dir+"/sbin/runc", binary, 0o700))
	t.Cleanup(func() { os.RemoveAll(dir) })
	l.prepare()
	return l
}

// sibling is another container of the same pod.
func (l *lab) sibling(name string) *lab {
	other := *l
	other.name, other.dir = name, l.node+"/"+name
	other.bundle, other.images, other.log = other.dir+"/bundle", l.node+"/run/images/m1/"+name, other.dir+"/log.json"
	other.prepare()
	return &other
}

func (l *lab) prepare() {
	for _, path := range []string{l.bundle + "/rootfs", l.images + "/images"} {
		must(l.t, os.MkdirAll(path, 0o700))
	}
	must(l.t, os.WriteFile(l.images+"/images/inventory.img", nil, 0o600))
	l.spec("container", true)
	l.t.Cleanup(func() {
		for _, name := range []string{"tree.pid", "criu.pid"} {
			for _, pid := range l.pids(name) {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lab) spec(kind string, marked bool) {
	annotations := map[string]string{"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-uid": testUID,
		"io.kubernetes.cri.sandbox-namespace": "default", "io.kubernetes.cri.sandbox-name": "redis-moved"}
	if kind == "container" {
		annotations["io.kubernetes.cri.container-name"] = l.name
		annotations["io.kubernetes.cri.sandbox-id"] = "sandbox-1"
	}
	if marked {
		annotations[migrationAnnotation] = "m1"
	}
	raw, _ := json.Marshal(map[string]any{"ociVersion": "1.2", "annotations": annotations, "root": map[string]string{"path": "rootfs"}})
	must(l.t, os.WriteFile(l.bundle+"/config.json", raw, 0o600))
}

func (l *lab) ticketDir() string { return l.cfg.ticketDir(testUID) }

func (l *lab) ticket(name string, containers ...string) {
	must(l.t, os.MkdirAll(l.ticketDir(), 0o700))
	if len(containers) == 0 {
		containers = []string{"app"}
	}
	raw, _ := json.Marshal(map[string]any{"migration": "m1", "containers": containers})
	must(l.t, os.WriteFile(l.ticketDir()+"/"+name, raw, 0o600))
}

func (l *lab) command(env []string, args ...string) *exec.Cmd {
	raw, _ := json.Marshal(l.cfg)
	cmd := exec.Command(l.cfg.Self, args...)
	cmd.Env = append([]string{configEnv + "=" + string(raw), "LAB=" + l.dir, "PATH=" + l.node + "/sbin:/usr/bin:/bin"}, env...)
	return cmd
}

func (l *lab) createArgs(id string) []string {
	return []string{"--root", l.dir + "/runcroot", "--log", l.log, "--log-format", "json", "--systemd-cgroup", "create",
		"--bundle", l.bundle, "--pid-file", l.dir + "/pid", id}
}

// start runs create in the background; the channel gives its exit code.
func (l *lab) start(id string, env ...string) (*exec.Cmd, chan int) {
	cmd := l.command(env, l.createArgs(id)...)
	must(l.t, cmd.Start())
	done := make(chan int, 1)
	go func() { cmd.Wait(); done <- cmd.ProcessState.ExitCode() }()
	return cmd, done
}

func (l *lab) rc(done chan int) int {
	l.t.Helper()
	select {
	case rc := <-done:
		return rc
	case <-time.After(20 * time.Second):
		l.t.Fatal("create did not end")
		return -1
	}
}

func (l *lab) read(name string) string {
	raw, _ := os.ReadFile(filepath.Join(l.dir, name))
	return string(raw)
}

func (l *lab) pids(name string) []int {
	var pids []int
	for _, field := range strings.Fields(l.read(name)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("not reached: " + what)
}

// alive: a zombie counts as dead, nothing of it ever runs again.
func alive(pid int) bool {
	stat, err := readStat(pid)
	return err == nil && stat.state != 'Z' && stat.state != 'X'
}

// agent is a scriptable node agent.
type agent struct {
	l        *lab
	listener net.Listener
	conns    chan *agentPeer
}

type agentPeer struct {
	net.Conn
	reader *bufio.Reader
	first  map[string]any
}

func (l *lab) agent() *agent {
	l.t.Helper()
	os.Remove(l.cfg.socket())
	listener, err := net.Listen("unix", l.cfg.socket())
	must(l.t, err)
	a := &agent{l: l, listener: listener, conns: make(chan *agentPeer, 100)}
	l.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				peer := &agentPeer{Conn: conn, reader: bufio.NewReader(conn)}
				if peer.first = peer.line(); peer.first != nil {
					a.conns <- peer
				}
			}()
		}
	}()
	return a
}

func (p *agentPeer) line() map[string]any {
	raw, err := p.reader.ReadBytes('\n')
	if err != nil {
		return nil
	}
	var message map[string]any
	json.Unmarshal(raw, &message)
	return message
}

func (p *agentPeer) say(text string) { fmt.Fprintln(p, text) }

func (a *agent) next(role string) *agentPeer {
	a.l.t.Helper()
	select {
	case peer := <-a.conns:
		if peer.first["role"] != role {
			a.l.t.Fatalf("expected %s, got %v", role, peer.first)
		}
		return peer
	case <-time.After(15 * time.Second):
		a.l.t.Fatal("nobody connected as " + role + "; log: " + a.l.read("log.json") + a.l.read("run/images/m1/app/hook.log"))
		return nil
	}
}

func (a *agent) restoreAnswer() string {
	return fmt.Sprintf(`{"action":"restore","imageDir":%q,"options":["tcp-close","file-locks"]}`, a.l.images)
}

// held brings a create to the point where its tree is held.
func (a *agent) held(id string, env ...string) (cmd *exec.Cmd, done chan int, gate, hook *agentPeer, tree int) {
	a.l.t.Helper()
	cmd, done = a.l.start(id, env...)
	gate = a.next("gate")
	gate.say(a.restoreAnswer())
	hook = a.next("hook")
	return cmd, done, gate, hook, a.l.tree()
}

// tree is the first process of the tree that was restored last.
func (l *lab) tree() int {
	l.t.Helper()
	pids := l.pids("tree.pid")
	if len(pids) == 0 {
		l.t.Fatal("no tree was restored")
	}
	return pids[len(pids)-1]
}
