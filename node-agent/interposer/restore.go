package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// restore turns a `create` into `runc restore` of a checkpoint that the agent named.
type restore struct {
	*creation
	conn     *agentConn
	imageDir string
	options  []string
}

// knownOptions are the CRIU options an agent may ask for. An option is a line of a configuration file for a privileged
// process, so nothing that is not listed is ever written there.
var knownOptions = []string{"tcp-close", "tcp-established", "file-locks", "ext-unix-sk", "skip-in-flight", "link-remap", lazyPages}

type gateEvent struct {
	Event   string `json:"event"`
	Message string `json:"message,omitempty"`
}

// run returns nil when the restored container runs. Whatever else it returns, no tree of this restore is alive.
func (r *restore) run() error {
	err := reach(r.cfg, atTold)
	if err == nil {
		err = r.prepare()
	}
	if err == nil {
		err = r.restore()
	}
	if err == nil {
		// Best effort from here on: the ticket on disk has decided, not this connection.
		_ = reach(r.cfg, atRestored)
		_ = r.conn.send(gateEvent{Event: "restored"})
		return nil
	}
	forgetRestored(r.cfg, r.cmd.id)
	_ = r.conn.send(gateEvent{Event: "failed", Message: err.Error()})
	return err
}

// prepare does everything that can fail without CRIU.
func (r *restore) prepare() error {
	if err := r.checkImages(); err != nil {
		return fmt.Errorf("the checkpoint of container %s cannot be used: %w", r.id.container, err)
	}
	for _, option := range r.options {
		if !slices.Contains(knownOptions, option) {
			return fmt.Errorf("the node agent asked for the CRIU option %q, which this interposer does not allow", shorten(option, 80))
		}
	}
	if dir := stateDir(r.cmd); exists(dir) {
		// Not ours: without this check the cleanup of our own failure would delete somebody's running container.
		return fmt.Errorf("a container with the id %s exists already in %s", r.cmd.id, filepath.Dir(dir))
	}
	if err := r.prepareShared(); err != nil {
		return err
	}
	if err := r.applyDiff(); err != nil {
		return fmt.Errorf("the file system changes of container %s cannot be applied: %w", r.id.container, err)
	}
	if err := mendTimers(filepath.Join(r.imageDir, "images")); err != nil {
		return fmt.Errorf("the timers of container %s cannot be prepared: %w", r.id.container, err)
	}
	if err := r.writeFiles(); err != nil {
		return fmt.Errorf("the restore of container %s cannot be prepared: %w", r.id.container, err)
	}
	if err := reach(r.cfg, atPrepared); err != nil {
		return err
	}
	if boottime() >= r.deadline {
		return fmt.Errorf("the restore of container %s could not begin in time; the kubelet tries again", r.id.container)
	}
	return r.look()
}

// stateDir is where runc keeps the container's state.
func stateDir(cmd command) string {
	root := cmd.options["root"]
	if root == "" {
		root = "/run/runc"
	}
	return filepath.Join(root, cmd.id)
}

// checkImages confines the image directory: <run>/images/<migration>/<container>, or the same below <state> when it does
// not fit into memory; every directory on the way real, owned by root and writable by nobody else, and a complete
// checkpoint in it (CRIU writes inventory.img last).
func (r *restore) checkImages() error {
	path := r.cfg.images()
	if inside(r.cfg.imagesOnDisk(), r.imageDir) {
		path = r.cfg.imagesOnDisk()
	}
	if !inside(path, r.imageDir) || strings.ContainsAny(r.imageDir, "\n\x00") {
		return fmt.Errorf("%q is not a directory below %s", shorten(r.imageDir, 200), path)
	}
	parts := strings.Split(strings.TrimPrefix(r.imageDir, path+"/"), "/")
	for _, part := range append([]string{"."}, append(parts, "images")...) {
		path = filepath.Join(path, part)
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || !info.IsDir() || int(stat.Uid) != r.cfg.Owner || info.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("%s is not a directory that only root can write to", path)
		}
	}
	info, err := os.Lstat(filepath.Join(path, "inventory.img"))
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s/inventory.img is not a file", path)
	}
	return err
}

// prepareShared makes what the pod's containers share as it was, before the first of them is restored.
func (r *restore) prepareShared() error {
	ticket, err := readTicketContent(r.dir, "pending")
	if err != nil || len(ticket.Containers) == 0 {
		return errors.Join(errors.New("the ticket does not say which containers are restored"), err)
	}
	if ticket.Containers[0] != r.id.container {
		return nil
	}
	if r.id.ipc != "" {
		if err := clearIPC(r.id.ipc); err != nil {
			return fmt.Errorf("the pod's IPC namespace cannot be cleared: %w", err)
		}
	}
	if err := r.applyShared(); err != nil {
		return fmt.Errorf("the pod's shared volumes cannot be made as they were: %w", err)
	}
	return nil
}

func (r *restore) applyDiff() error {
	file, err := os.OpenFile(filepath.Join(r.imageDir, "rootfs-diff.tar"), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if r.id.rootfs == "" {
		return errors.New("config.json names no root file system")
	}
	root := r.id.rootfs
	if !filepath.IsAbs(root) {
		root = filepath.Join(r.bundle, root)
	}
	return applyDiff(root, file, productionLimits)
}

// writeFiles leaves for the hook what it must know, for CRIU how it must restore, and for `start` that there is nothing
// left to do.
func (r *restore) writeFiles() error {
	if err := r.writeHookFile(); err != nil {
		return err
	}
	conf := r.cfg.criuConf(r.cmd.id)
	marker := r.cfg.restored(r.cmd.id)
	err := errors.Join(privateDir(filepath.Dir(conf)), privateDir(filepath.Dir(marker)), privateDir(filepath.Join(r.imageDir, "work")))
	if err != nil {
		return err
	}
	if err := writeAtomic(conf, r.criuConfig()); err != nil {
		return err
	}
	if err := annotateBundle(r.bundle, conf); err != nil {
		return err
	}
	return writeAtomic(marker, []byte(r.id.podUID+"\n"))
}

func (r *restore) writeHookFile() error {
	stat, err := readStat(os.Getpid())
	if err != nil {
		return err
	}
	data, err := encode(hookFile{
		TicketDir: r.dir, PodUID: r.id.podUID, Migration: r.id.migration, Container: r.id.container, ContainerID: r.cmd.id,
		Bundle: r.bundle, Socket: r.cfg.socket(), InterposerPID: os.Getpid(), InterposerStart: stat.start, Deadline: r.deadline,
	})
	if err != nil {
		return err
	}
	_ = os.Remove(filepath.Join(r.imageDir, "hook.log"))
	return writeAtomic(filepath.Join(r.imageDir, "hook.json"), data)
}

// criuConfig is CRIU's syntax: one long option a line, without the dashes. It is read after runc's own options and wins.
func (r *restore) criuConfig() []byte {
	lines := []string{"action-script " + r.cfg.Self, "network-lock skip"}
	for _, option := range r.options {
		if option != lazyPages { // runc must know it too
			lines = append(lines, option)
		}
	}
	return []byte(strings.Join(lines, "\n") + "\n")
}

// restore runs runc and judges the result by the ticket: only `resuming` proves that our hook ran and let the tree go.
// CRIU ignores the exit code of pre-resume, so runc may well return 0 for a tree that the hook killed.
func (r *restore) restore() error {
	if slices.Contains(r.options, lazyPages) {
		if err := r.startPager(); err != nil {
			return fmt.Errorf("container %s could not be restored: its memory cannot be filled in later: %w", r.id.container, err)
		}
	}
	status, err := r.runRunc()
	state, ticketErr := readTicket(r.dir)
	if err == nil && status == 0 && state == ticketResuming {
		return nil
	}
	work := filepath.Join(r.imageDir, "work")
	what := fmt.Sprintf("runc restore ended with status %d", status)
	if status == 0 {
		what = "runc restore succeeded, but the hook did not let the container go"
	}
	failure := restoreFailure(errors.Join(err, ticketErr), what, filepath.Join(r.imageDir, "hook.log"),
		filepath.Join(work, "restore.log"), r.cmd.options["log"])
	// The hook has killed the tree if it could. If it died itself nobody has, so it is done again here.
	if err := killRecordedTree(r.dir, r.id.container); err != nil {
		failure += "; the tree could not be killed: " + err.Error()
	}
	r.deleteContainer()
	return fmt.Errorf("container %s could not be restored: %s", r.id.container, failure)
}
