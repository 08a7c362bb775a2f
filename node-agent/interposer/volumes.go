package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// What the pod's containers share came as archives beside their checkpoints: each is applied to this pod's own directory
// before the first container is restored, and makes it exactly what it was. A restore that failed may have left files.

const (
	sharedDirectory = "_pod" // beside the containers' image directories; no container can have this name
	sharedMemory    = "shm.tar"
	volumePrefix    = "volume-"
)

// applyShared unpacks all archives of the pod.
func (r *restore) applyShared() error {
	dir := filepath.Join(filepath.Dir(r.imageDir), sharedDirectory)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".tar") {
			continue // for the agent
		}
		target, err := r.sharedTarget(entry.Name())
		if err == nil {
			err = applyArchive(target, filepath.Join(dir, entry.Name()))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", shorten(entry.Name(), 100), err)
		}
	}
	return nil
}

// sharedTarget names the directory that an archive belongs to: only ever one of this pod's.
func (r *restore) sharedTarget(archive string) (string, error) {
	if archive == sharedMemory {
		return r.sandboxMemory()
	}
	name, isVolume := strings.CutPrefix(strings.TrimSuffix(archive, ".tar"), volumePrefix)
	if !isVolume || !containerPattern.MatchString(name) {
		return "", errors.New("not the name of a volume's archive")
	}
	return filepath.Join(r.cfg.KubeletPods, r.id.podUID, "volumes/kubernetes.io~empty-dir", name), nil
}

// sandboxMemory finds the sandbox's /dev/shm where the runtime itself wrote it: in the sandbox's bundle, which lies
// beside this one. A container's own bundle may have a volume in its place.
func (r *restore) sandboxMemory() (string, error) {
	if !idPattern.MatchString(r.id.sandbox) {
		return "", fmt.Errorf("the runtime names %q as the pod's sandbox", shorten(r.id.sandbox, 80))
	}
	data, err := readConfig(filepath.Join(filepath.Dir(r.bundle), r.id.sandbox))
	if err != nil {
		return "", err
	}
	var spec struct {
		Mounts []struct {
			Destination string `json:"destination"`
			Source      string `json:"source"`
		} `json:"mounts"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return "", err
	}
	for _, mount := range spec.Mounts {
		if mount.Destination == "/dev/shm" && filepath.IsAbs(mount.Source) && filepath.Clean(mount.Source) != "/dev/shm" {
			return mount.Source, nil
		}
	}
	return "", errors.New("the pod's sandbox has no /dev/shm of its own")
}

// applyArchive applies one archive to a directory that must be there.
func applyArchive(root, archive string) error {
	file, err := os.OpenFile(archive, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	return applyDiff(root, file, productionLimits)
}
