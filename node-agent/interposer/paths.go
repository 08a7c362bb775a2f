package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Config holds every path and limit. Production uses productionConfig only; nothing in it can be set by a user, because
// whoever sets them decides what a privileged process restores. Tests build their own.
type Config struct {
	StateDir   string        // on disk, survives a reboot: the tickets
	RunDir     string        // tmpfs: socket, images, CRIU configuration, marks
	BinDir     string        // holds our criu; put in front of PATH for runc restore
	SearchDirs string        // where the real runc is looked for after PATH
	Owner      int           // the only uid that may own the agent's socket and the images
	Deadline   time.Duration // from the start of create to refusal, below the kubelet's 120 s
	Self       string        // CRIU's action script
	// KubeletPods is where the kubelet keeps the volumes of its pods.
	KubeletPods string
}

func productionConfig() *Config {
	self, err := os.Executable()
	if err != nil {
		self = "/opt/container-migration/bin/runc-migratable"
	}
	return &Config{
		StateDir:   "/var/lib/container-migration",
		RunDir:     "/run/container-migration",
		BinDir:     "/opt/container-migration/bin",
		SearchDirs: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		Owner:      0,
		Deadline:   110 * time.Second,
		Self:       self,

		KubeletPods: "/var/lib/kubelet/pods",
	}
}

func (c *Config) ticketDir(podUID string) string { return filepath.Join(c.StateDir, "tickets", podUID) }
func (c *Config) socket() string                 { return filepath.Join(c.RunDir, "agent.sock") }
func (c *Config) pagesSocket() string            { return filepath.Join(c.RunDir, "pages.sock") }
func (c *Config) images() string                 { return filepath.Join(c.RunDir, "images") }
func (c *Config) imagesOnDisk() string           { return filepath.Join(c.StateDir, "images") }
func (c *Config) criuConf(id string) string      { return filepath.Join(c.RunDir, "criu", id+".conf") }
func (c *Config) restored(id string) string      { return filepath.Join(c.RunDir, "restored", id) }
func (c *Config) failpoint(name string) string   { return filepath.Join(c.RunDir, "failpoints", name) }
func (c *Config) fresh(id string) string         { return filepath.Join(c.RunDir, "fresh", id) }

// pattern is a regular expression that is compiled when it is used: most calls of this binary use none, and are counted
// in tenths of a millisecond.
type pattern string

func (p pattern) MatchString(text string) bool {
	return regexp.MustCompile(string(p)).MatchString(text)
}

// Names that become part of a path. A pod's UID is a UUID, or for static pods 32 hexadecimal digits.
const (
	podUIDPattern    pattern = `^([0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32})$`
	containerPattern pattern = `^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`
	idPattern        pattern = `^[A-Za-z0-9][A-Za-z0-9_+.-]{0,254}$`
)

// findRunc returns the first runc in PATH and the usual directories that is not this binary, compared by inode, since an
// administrator may have installed it under the name runc.
func findRunc(cfg *Config, env []string) (string, error) {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	for _, dir := range filepath.SplitList(lookupEnv(env, "PATH") + ":" + cfg.SearchDirs) {
		path := filepath.Join(dir, "runc")
		info, err := os.Stat(path)
		if filepath.IsAbs(dir) && err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 && !os.SameFile(self, info) {
			return path, nil
		}
	}
	return "", errors.New("no runc found in PATH or " + cfg.SearchDirs)
}

// passThrough becomes the real runc with argv and environment unchanged. It returns only on failure.
func passThrough(cfg *Config, cmd command, argv, env []string) int {
	runc, err := findRunc(cfg, env)
	if err == nil {
		err = syscall.Exec(runc, argv, env)
	}
	return refuse(cmd, "container-migration cannot run the real runc: "+err.Error()+"; install runc on this node")
}

// writeAtomic replaces path so that a reader sees the old or the new content and a crash leaves one of them.
func writeAtomic(path string, data []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(data)
	return errors.Join(err, finishAtomic(file, path, err))
}

// finishAtomic syncs, closes and renames a temporary file into place; with a failure it only closes.
func finishAtomic(file *os.File, path string, failed error) error {
	if failed != nil {
		return file.Close()
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename or a new name in dir durable.
func syncDir(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// privateDir makes sure that path is a directory that only the owner can enter.
func privateDir(path string) error { return os.MkdirAll(path, 0o700) }

func isRestored(cfg *Config, id string) bool {
	if !idPattern.MatchString(id) {
		return false
	}
	_, err := os.Lstat(cfg.restored(id))
	return err == nil
}

// forgetRestored removes what belongs to a container's life as a restored one.
func forgetRestored(cfg *Config, id string) {
	if idPattern.MatchString(id) {
		_ = os.Remove(cfg.restored(id))
		_ = os.Remove(cfg.fresh(id))
		_ = os.Remove(cfg.criuConf(id))
	}
}

// exists says whether path exists; any other answer than "no such file" counts as yes, the careful side.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// inside says whether the clean absolute path lies below dir.
func inside(dir, path string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && strings.HasPrefix(path, dir+"/")
}
