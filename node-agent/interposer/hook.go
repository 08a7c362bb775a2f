package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// hookFile is imageDir/hook.json: what the interposer tells its hooks. On the source the agent writes one that has only
// socket, migration and container.
type hookFile struct {
	TicketDir       string `json:"ticketDir"`
	PodUID          string `json:"podUID"`
	Migration       string `json:"migration"`
	Container       string `json:"container"`
	ContainerID     string `json:"containerID"`
	Bundle          string `json:"bundle"`
	Socket          string `json:"socket"`
	InterposerPID   int    `json:"interposerPID"`
	InterposerStart uint64 `json:"interposerStart"`
	Deadline        int64  `json:"deadlineBoottimeNs"`
}

// hookRequest is the one line that a hook says. A dump knows neither pod nor container: those fields are absent then.
type hookRequest struct {
	Role        string `json:"role"`
	Action      string `json:"action"`
	PodUID      string `json:"podUID,omitempty"`
	Migration   string `json:"migration"`
	Container   string `json:"container"`
	ContainerID string `json:"containerID,omitempty"`
	InitPID     int    `json:"initPID,omitempty"`
	PID         int    `json:"pid"`
}

type hookAnswer struct {
	Action  string `json:"action"`
	Message string `json:"message"`
}

// hook is one run of CRIU's action script. It never writes to stdout or stderr: those are the container's.
type hook struct {
	cfg      *Config
	file     hookFile
	imageDir string
	initPID  int
	chain    []int // pidfds of CRIU, runc and the interposer, of whatever lies between, and of the tree's first process
}

// runHook returns the exit code for CRIU. Whatever goes wrong before the tree may run, the tree is killed.
func runHook(cfg *Config, action string, env []string) int {
	var act func(*hook) error
	switch action {
	case "post-restore":
		act = (*hook).postRestore
	case "pre-resume":
		act = (*hook).preResume
	case "post-dump":
		act = (*hook).postDump
	default:
		return 0
	}
	h := &hook{cfg: cfg}
	err := h.load(lookupEnv(env, "CRTOOLS_IMAGE_DIR"))
	if action == "post-dump" && errors.Is(err, errForeign) {
		return 0 // a dump by somebody else, of a container that we once restored
	}
	if action != "post-dump" {
		var pidErr error
		h.initPID, pidErr = parsePID(lookupEnv(env, "CRTOOLS_INIT_PID"))
		err = errors.Join(err, pidErr)
	}
	if err == nil {
		err = act(h)
	}
	if err == nil {
		return 0
	}
	if action != "post-dump" {
		err = errors.Join(err, h.kill())
	}
	if action == "pre-resume" {
		err = errors.Join(err, killTracer(h.initPID))
	}
	h.log(action, err)
	return 1
}

// errForeign: the images are not in our directory, so this is not a migration.
var errForeign = errors.New("the image directory is not one of a migration")

func parsePID(text string) (int, error) {
	pid, err := strconv.Atoi(text)
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("CRTOOLS_INIT_PID is %q", shorten(text, 40))
	}
	return pid, nil
}

// load reads hook.json beside the directory that CRIU names, by way of /proc/PID/fd/N: a link that only the kernel can
// resolve, hence the readlink.
func (h *hook) load(images string) error {
	dir, err := filepath.EvalSymlinks(images)
	if err != nil {
		return fmt.Errorf("CRTOOLS_IMAGE_DIR: %w", err)
	}
	if !h.ours(dir) {
		return errForeign
	}
	h.imageDir = filepath.Dir(dir)
	file, err := os.OpenFile(filepath.Join(h.imageDir, "hook.json"), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxLine))
	if err != nil {
		return err
	}
	return json.Unmarshal(data, &h.file)
}

// ours says whether a directory is one of a checkpoint of ours, in memory or on the disk.
func (h *hook) ours(dir string) bool {
	for _, home := range []string{h.cfg.images(), h.cfg.imagesOnDisk()} {
		if root, err := filepath.EvalSymlinks(home); err == nil && inside(root, dir) {
			return true
		}
	}
	return false
}

// log leaves the reason for the interposer, which puts it into its own message.
func (h *hook) log(action string, err error) {
	if h.imageDir == "" {
		return
	}
	file, openErr := os.OpenFile(filepath.Join(h.imageDir, "hook.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if openErr == nil {
		fmt.Fprintf(file, "hook at %s: %s\n", action, shorten(fmt.Sprintf("%q", err.Error()), 1000))
		file.Close()
	}
}

// kill ends the tree: the one CRIU names, or if it names none the one recorded at post-restore.
func (h *hook) kill() error {
	if h.initPID > 1 {
		return killTree(h.initPID)
	}
	if h.file.TicketDir == "" {
		return errors.New("the tree is not known")
	}
	return killRecordedTree(h.file.TicketDir, h.file.Container)
}

// postRestore holds the complete tree until the agent says resume. The open connection is the agent's proof that it is
// held, so everything that ends the hold also ends the tree.
func (h *hook) postRestore() error {
	if err := h.watch(); err != nil {
		return err
	}
	if err := h.check(); err != nil {
		return err
	}
	if err := writeTree(h.file.TicketDir, h.file.Container, h.file.ContainerID, h.initPID); err != nil {
		return fmt.Errorf("cannot record the restored tree: %w", err)
	}
	if err := reach(h.cfg, atRecorded); err != nil {
		return err
	}
	conn, err := h.dial()
	if err != nil {
		return err
	}
	defer conn.close()
	if err := conn.send(h.request("post-restore")); err != nil {
		return err
	}
	var answer hookAnswer
	if err := conn.receive(&answer, h.file.Deadline, h.chain); err != nil {
		return err
	}
	if answer.Action != "resume" {
		return fmt.Errorf("the node agent said %q: %s", shorten(answer.Action, 80), shorten(answer.Message, 1000))
	}
	if err := reach(h.cfg, atReleased); err != nil {
		return err
	}
	return h.check()
}

// preResume is the last moment at which the tree has not run. Whoever renames `pending` has decided.
func (h *hook) preResume() error {
	if err := h.watch(); err != nil {
		return err
	}
	if err := h.check(); err != nil {
		return err
	}
	ticket, err := readTicketContent(h.file.TicketDir, "pending")
	if err != nil || !slices.Contains(ticket.Containers, h.file.Container) {
		return errors.Join(errors.New("the ticket does not say that this container is restored"), err)
	}
	if len(ticket.Containers) > 1 {
		return h.meet(ticket.Containers)
	}
	if err := h.decide(); err != nil {
		return err
	}
	if conn, err := dialAgent(h.cfg); err == nil {
		_ = conn.send(h.request("pre-resume"))
		conn.close()
	}
	return nil
}

// decide renames the ticket.
func (h *hook) decide() error {
	if err := reach(h.cfg, atDeciding); err != nil {
		return err
	}
	renamed, err := startResuming(h.file.TicketDir)
	if !renamed {
		return fmt.Errorf("the ticket cannot become resuming: %w", err)
	}
	if err != nil {
		// Decided and visible, only perhaps not durable. To kill now would lose what the agent may already call
		// resumed; it syncs the directory itself before it writes the outcome.
		h.log("pre-resume", fmt.Errorf("resuming, but not synced: %w", err))
	}
	_ = reach(h.cfg, atResuming) // decided: nothing may fail any more
	return nil
}

// postDump keeps the dumped tree frozen and its link remaps in place while the agent copies files.
func (h *hook) postDump() error {
	deadline := boottime() + int64(h.cfg.Deadline)
	conn, err := dialAgent(h.cfg)
	if err != nil {
		return err
	}
	defer conn.close()
	if err := reach(h.cfg, atPostDump); err != nil {
		return err
	}
	if err := conn.send(h.request("post-dump")); err != nil {
		return err
	}
	var answer hookAnswer
	if err := conn.receive(&answer, deadline, nil); err != nil {
		return err
	}
	if answer.Action != "done" {
		return fmt.Errorf("the node agent said %q: %s", shorten(answer.Action, 80), shorten(answer.Message, 1000))
	}
	return reach(h.cfg, atCopied)
}

func (h *hook) request(action string) hookRequest {
	return hookRequest{"hook", action, h.file.PodUID, h.file.Migration, h.file.Container, h.file.ContainerID, h.initPID, os.Getpid()}
}
