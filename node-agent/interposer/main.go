// Command runc-migratable is the OCI runtime of the handler `migratable` and CRIU's action script in one binary.
//
// As a runtime it is transparent: everything is handed to the real runc by execve, except that a container of a pod
// marked as a migration's target is not created before the node agent allows it (docs/protocol.md, section 3) and is
// then restored from a checkpoint instead (section 4). As CRIU's action script it holds the restored process tree
// until the agent says `resume` (section 4). It fails closed: without an agent a marked container does not start.
package main

import (
	"os"
	"strings"
)

func main() {
	os.Exit(run(productionConfig(), os.Args, os.Environ()))
}

// run is main with everything injected. It returns only when the process is not replaced by the real runc.
func run(cfg *Config, argv, env []string) int {
	if action := lookupEnv(env, "CRTOOLS_SCRIPT_ACTION"); action != "" {
		return runHook(cfg, action, env)
	}
	if len(argv) > 1 && argv[1] == keeperCommand {
		return runKeeper(cfg, argv, env)
	}
	if len(argv) > 1 && argv[1] == starterCommand {
		return runStarter(cfg, argv, env)
	}
	if len(argv) > 1 && argv[1] == pagerCommand {
		return runPager(cfg, argv)
	}
	if len(argv) > 1 && argv[1] == pagerServer {
		return runPageServer(cfg, argv)
	}
	if len(argv) > 1 && argv[1] == dumpCommand {
		return runDump(argv, env)
	}
	if len(argv) > 1 && argv[1] == copierCommand {
		return runCopier(argv, os.Stdin, os.Stdout)
	}
	began := boottime()
	cmd, err := parseCommand(argv[1:])
	if err != nil {
		return unparsable(cfg, argv, env, cmd, err)
	}
	switch cmd.sub {
	case "create", "run", "restore":
		// run and restore are not what a CRI runtime uses for a fresh container; they are looked at so that they
		// are no way around the gate.
		return (&creation{cfg: cfg, cmd: cmd, argv: argv, env: env, deadline: began + int64(cfg.Deadline)}).run()
	case "start":
		if isRestored(cfg, cmd.id) {
			return 0
		}
		mark, ok, err := readFresh(cfg, cmd.id)
		if err != nil {
			return refuse(cmd, "container-migration: "+err.Error())
		}
		if ok {
			return (&freshStart{cfg, cmd, argv, env, mark}).run(began + int64(cfg.Deadline))
		}
	case "exec":
		if mayNotRunYet(cfg, cmd.id) {
			return refuse(cmd, "container-migration: the container waits for its migration's commit, so nothing is executed in it yet")
		}
	case "delete":
		forgetRestored(cfg, cmd.id)
	}
	return passThrough(cfg, cmd, argv, env)
}

// unparsable decides about a command line with an option this version does not know. Passing it on blindly would be a
// way around the gate, refusing it blindly would break ordinary pods, so the bundle's mark decides.
func unparsable(cfg *Config, argv, env []string, cmd command, parseErr error) int {
	if !cmd.mayCreate() {
		return passThrough(cfg, cmd, argv, env)
	}
	id, err := readIdentity(cmd.bundle())
	if err != nil || !id.isMarked(cfg) {
		return passThrough(cfg, cmd, argv, env)
	}
	return refuse(cmd, "container-migration does not understand this runtime's command line ("+parseErr.Error()+
		"), so it does not start a container of a migration's target pod; report the runtime's version")
}

// lookupEnv reads a variable of an environment that is not necessarily our own.
func lookupEnv(env []string, name string) string {
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}
