package main

import (
	"fmt"
	"slices"
	"strings"
)

// command is a parsed runc command line. Only what the interposer needs is kept; argv itself is passed on unchanged.
type command struct {
	globals []string          // everything before the subcommand, for `runc restore`
	sub     string            // create, start, …; empty for `runc --version`
	options map[string]string // options before and after the subcommand, without dashes; "" for switches
	id      string
	raw     []string
}

// Options that take a value; runc's parser is Go's flag package, so `-x` equals `--x` and `=value` always works.
var (
	globalValues = []string{"root", "log", "log-format", "criu", "rootless"}
	globalFlags  = []string{"debug", "systemd-cgroup", "help", "h", "version", "v"}
	createValues = []string{"bundle", "b", "pid-file", "console-socket", "preserve-fds"}
	createFlags  = []string{"no-pivot", "no-new-keyring", "keep", "detach", "d", "no-subreaper", "help", "h"}
	// restore and run share the table: a few more of their options.
	restoreValues = []string{"image-path", "work-path", "manage-cgroups-mode", "empty-ns", "lsm-profile", "lsm-mount-context", "parent-path"}
	// Of exec only the options with values matter: they must not be taken for the container.
	execValues = []string{"console-socket", "cwd", "env", "e", "user", "u", "additional-gids", "g", "process", "p", "pid-file",
		"process-label", "apparmor", "cap", "c", "preserve-fds", "cgroup"}
	restoreFlags = []string{"tcp-established", "ext-unix-sk", "shell-job", "file-locks", "auto-dedup", "lazy-pages"}
)

// parseCommand splits a runc command line. An unknown option is an error only where it matters, before the subcommand
// and for those that create a container: elsewhere it cannot hide anything from us.
func parseCommand(args []string) (command, error) {
	cmd := command{options: map[string]string{}, raw: args}
	i, err := cmd.options0(args)
	if err != nil || i >= len(args) {
		return cmd, err
	}
	cmd.globals, cmd.sub = args[:i:i], args[i]
	values, flags, strict := append(createValues, restoreValues...), append(createFlags, restoreFlags...), true
	if !slices.Contains(creating, cmd.sub) {
		values, flags, strict = nil, nil, false
	}
	if cmd.sub == "exec" {
		values = execValues
	}
	for i++; i < len(args); i++ {
		if args[i] == "--" {
			continue
		}
		if !strings.HasPrefix(args[i], "-") || args[i] == "-" {
			if cmd.id == "" {
				cmd.id = args[i]
			}
			continue
		}
		used, err := cmd.option(args[i:], values, flags, strict)
		if err != nil {
			return cmd, err
		}
		i += used - 1
	}
	return cmd, nil
}

// options0 reads the global options and returns the index of the subcommand.
func (c *command) options0(args []string) (int, error) {
	i := 0
	for i < len(args) && strings.HasPrefix(args[i], "-") && args[i] != "-" {
		if args[i] == "--" {
			return i + 1, nil
		}
		used, err := c.option(args[i:], globalValues, globalFlags, true)
		if err != nil {
			return i, err
		}
		i += used
	}
	return i, nil
}

// option reads one option and returns how many arguments it used.
func (c *command) option(args, values, flags []string, strict bool) (int, error) {
	name, value, inline := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(args[0], "-"), "-"), "=")
	switch {
	case slices.Contains(values, name):
		if inline {
			c.options[name] = value
			return 1, nil
		}
		if len(args) < 2 {
			return 0, fmt.Errorf("option %s has no value", args[0])
		}
		c.options[name] = args[1]
		return 2, nil
	case slices.Contains(flags, name) || !strict:
		if value != "false" && value != "0" {
			c.options[name] = ""
		}
		return 1, nil
	}
	return 0, fmt.Errorf("unknown option %s", args[0])
}

// creating lists the subcommands that make a container run.
var creating = []string{"create", "run", "restore"}

// mayCreate is asked when the command line was not understood.
func (c *command) mayCreate() bool {
	return slices.ContainsFunc(creating, func(sub string) bool { return slices.Contains(c.raw, sub) })
}

// bundle returns the bundle's directory; runc's default is the working directory. When the command line was not
// understood the arguments are searched for it.
func (c *command) bundle() string {
	for _, name := range []string{"bundle", "b"} {
		if value, ok := c.options[name]; ok {
			return value
		}
	}
	for i, arg := range c.raw {
		name, value, inline := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !strings.HasPrefix(arg, "-") || name != "bundle" && name != "b" {
			continue
		}
		if inline {
			return value
		}
		if i+1 < len(c.raw) {
			return c.raw[i+1]
		}
	}
	return "."
}

// restoreArgs is the command line of `runc restore` for this `runc create`.
func (c *command) restoreArgs(bundle, imagePath, workPath string, fileLocks, lazy bool) []string {
	args := append([]string{"runc"}, c.globals...)
	args = append(args, "restore", "--detach", "--bundle", bundle)
	for _, name := range []string{"pid-file", "console-socket"} {
		if value, ok := c.options[name]; ok {
			args = append(args, "--"+name, value)
		}
	}
	if _, ok := c.options["no-pivot"]; ok {
		args = append(args, "--no-pivot")
	}
	if fileLocks {
		args = append(args, "--file-locks")
	}
	if lazy {
		args = append(args, "--"+lazyPages)
	}
	return append(args, "--image-path", imagePath, "--work-path", workPath, "--manage-cgroups-mode", "ignore", c.id)
}
