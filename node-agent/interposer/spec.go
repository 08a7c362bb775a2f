package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	migrationAnnotation = "containermigration.io/migration"
	criuAnnotation      = "org.criu.config"
	maxConfigJSON       = 64 << 20
)

// identity is what the runtime itself wrote about the container; the user's own words in it are only the mark.
type identity struct {
	kind      string // "sandbox" or "container"
	podUID    string
	namespace string
	pod       string // its name
	sandbox   string // the sandbox's container ID
	container string
	migration string // the annotation's value
	annotated bool
	rootfs    string
	ipc       string // path of the IPC namespace it joins, the pod's
}

// identify reads the annotations of containerd or CRI-O. The runtimes write theirs after the user's, so a pod cannot
// claim to be another one.
func identify(annotations map[string]string, rootPath string) identity {
	id := identity{
		kind:      annotations["io.kubernetes.cri.container-type"],
		podUID:    annotations["io.kubernetes.cri.sandbox-uid"],
		namespace: annotations["io.kubernetes.cri.sandbox-namespace"],
		pod:       annotations["io.kubernetes.cri.sandbox-name"],
		sandbox:   annotations["io.kubernetes.cri.sandbox-id"],
		container: annotations["io.kubernetes.cri.container-name"],
		rootfs:    rootPath,
	}
	if id.kind == "" {
		id.kind = annotations["io.kubernetes.cri-o.ContainerType"]
		id.podUID = annotations["io.kubernetes.pod.uid"]
		id.namespace = annotations["io.kubernetes.pod.namespace"]
		id.pod = annotations["io.kubernetes.pod.name"]
		id.sandbox = annotations["io.kubernetes.cri-o.SandboxID"]
		id.container = annotations["io.kubernetes.container.name"]
	}
	id.migration, id.annotated = annotations[migrationAnnotation]
	return id
}

// isMarked: the annotation, or a ticket directory of that pod, from which on the annotation does not matter.
func (id identity) isMarked(cfg *Config) bool {
	return id.annotated || podUIDPattern.MatchString(id.podUID) && exists(cfg.ticketDir(id.podUID))
}

func readConfig(bundle string) ([]byte, error) {
	file, err := os.Open(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxConfigJSON+1))
	if err == nil && len(data) > maxConfigJSON {
		err = errors.New("config.json is too large")
	}
	return data, err
}

func readIdentity(bundle string) (identity, error) {
	data, err := readConfig(bundle)
	if err != nil {
		return identity{}, err
	}
	return parseIdentity(data)
}

func parseIdentity(data []byte) (identity, error) {
	var spec struct {
		Annotations map[string]string `json:"annotations"`
		Root        struct {
			Path string `json:"path"`
		} `json:"root"`
		Linux struct {
			Namespaces []struct {
				Type string `json:"type"`
				Path string `json:"path"`
			} `json:"namespaces"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return identity{}, fmt.Errorf("config.json: %w", err)
	}
	id := identify(spec.Annotations, spec.Root.Path)
	for _, namespace := range spec.Linux.Namespaces {
		if namespace.Type == "ipc" {
			id.ipc = namespace.Path
		}
	}
	return id, nil
}

// setAnnotation returns config.json with one annotation set and every other byte of a value as it was: numbers are
// never decoded, because a float64 would round the large ones.
func setAnnotation(data []byte, name, value string) ([]byte, error) {
	const key = "annotations"
	document, err := object(data, key)
	if err != nil {
		return nil, err
	}
	annotations := map[string]json.RawMessage{}
	if raw, ok := document[key]; ok {
		if err := json.Unmarshal(raw, &annotations); err != nil {
			return nil, err
		}
	}
	if annotations == nil { // it was null
		annotations = map[string]json.RawMessage{}
	}
	if annotations[name], err = encode(value); err != nil {
		return nil, err
	}
	if document[key], err = encode(annotations); err != nil {
		return nil, err
	}
	return encode(document)
}

// object decodes a JSON object whose fields of these names are about to be replaced.
func object(data []byte, names ...string) (map[string]json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, err
	}
	if fields == nil {
		return nil, errors.New("config.json, or what is replaced in it, is null")
	}
	for candidate := range fields {
		for _, name := range names {
			// encoding/json, which runc uses too, matches keys without regard to case.
			if strings.EqualFold(candidate, name) && candidate != name {
				return nil, fmt.Errorf("config.json has the unusual key %q", candidate)
			}
		}
	}
	return fields, nil
}

func encode(value any) ([]byte, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n")), err
}

// annotateBundle writes org.criu.config into the bundle. An existing value is overwritten, never trusted: a pod's user
// could have set it, and it names a file with options for a privileged CRIU.
func annotateBundle(bundle, criuConf string) error {
	return rewriteBundle(bundle, func(data []byte) ([]byte, error) { return setAnnotation(data, criuAnnotation, criuConf) })
}

// rewriteBundle replaces the bundle's config.json; its owner and mode stay.
func rewriteBundle(bundle string, change func([]byte) ([]byte, error)) error {
	path := filepath.Join(bundle, "config.json")
	data, err := readConfig(bundle)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if data, err = change(data); err != nil {
		return err
	}
	file, err := os.CreateTemp(bundle, ".config-*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(data)
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && err == nil {
		err = file.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err == nil {
		err = file.Chmod(info.Mode().Perm())
	}
	return errors.Join(err, finishAtomic(file, path, err))
}
