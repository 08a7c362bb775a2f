package main

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"time"
)

// Named places where a test may stop, kill, delay or fail the interposer and its hooks. Off, and harmless, in production:
// a failpoint is armed by a file of its name in run/failpoints, below a directory that only root can enter, and nothing
// of ours makes it. Whoever can do that can kill any process of the node. Unarmed, it costs one system call that finds
// no file, and only in containers of a migration. Those of operator and agents are in migration_api/failpoints.py.
const (
	atSandbox     = "interposer.sandbox"      // a marked pod's sandbox is about to be created
	atClaimed     = "interposer.claimed"      // the claim is held; the agent was not asked
	atTold        = "interposer.told"         // the agent said restore; nothing is prepared
	atPrepared    = "interposer.prepared"     // all is prepared; CRIU does not run yet
	atRestored    = "interposer.restored"     // the container runs; neither agent nor runtime is told
	atKept        = "interposer.kept"         // a keeper knows that its tree is held; its create does not
	atEarlyReturn = "interposer.early-return" // a create has its keeper and is about to return
	atStart       = "interposer.start"        // the start of a container that waits for the commit
	atPostDump    = "hook.post-dump"          // the source is dumped and held by CRIU; the agent is not told
	atCopied      = "hook.copied"             // the agent has copied the files; CRIU still holds the source
	atRecorded    = "hook.recorded"           // the restored tree is recorded; the agent is not told
	atReleased    = "hook.released"           // the agent said resume; CRIU does not know it
	atDeciding    = "hook.deciding"           // all lives, and the ticket is still pending
	atResuming    = "hook.resuming"           // the ticket is resuming; the tree does not run yet
	atFilling     = "pager.filling"           // all is restored; the pager begins to fill in what nobody waits for
)

const failpointPause = 20 * time.Millisecond

// reach does here what a test asks for; nothing, unless it does. Renaming the file disarms the failpoint, so that it acts
// once, and tells the test that it was reached.
func reach(cfg *Config, name string) error {
	armed := cfg.failpoint(name)
	hit := armed + ".hit"
	if os.Rename(armed, hit) != nil {
		return nil
	}
	data, err := os.ReadFile(hit)
	if err != nil {
		return nil
	}
	deed, argument, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	switch deed {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	case "fail":
		return errors.New("failpoint " + name)
	case "delay":
		seconds, err := time.ParseDuration(argument + "s")
		if err == nil {
			time.Sleep(seconds)
		}
	case "hang":
		for exists(hit) {
			time.Sleep(failpointPause)
		}
	}
	return nil
}
