package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The command stands in for runc and CRIU: it serves on the loopback of its own namespace until it is told to end.
const dumpedServer = `
import os, socket, struct, sys, time
time.sleep(0.05)
server = socket.create_server(("127.0.0.1", 27000))
server.settimeout(10)
connection, _ = server.accept()
connection.settimeout(10)
message = connection.recv(32, socket.MSG_WAITALL)
if connection.recv(1):  # CRIU holds its answer back, and waits for the end of the connection
    sys.exit(8)
connection.sendall(bytes(4))
with open(sys.argv[1], "w") as out:
    out.write("%x %d %s" % (struct.unpack("<I", message[:4])[0], len(message), os.readlink("/proc/self/ns/net")))
sys.exit(7)
`

func TestDumpEndsThePageServerInANamespaceOfItsOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes a network namespace: needs root")
	}
	out := filepath.Join(t.TempDir(), "out")
	cmd := newLab(t).command([]string{"PATH=" + os.Getenv("PATH")}, dumpCommand, "27000", "python3", "-c", dumpedServer, out)
	if _ = cmd.Run(); cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("ended with %v, not with the command's 7", cmd.ProcessState)
	}
	said, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	told, where, _ := strings.Cut(string(said), " net:")
	if told != "1023 32" || "net:"+where == own {
		t.Errorf("the server was told, and was there: %q", said)
	}
}

func TestDumpRefusesWhatItDoesNotUnderstand(t *testing.T) {
	for _, argv := range [][]string{{"x", dumpCommand}, {"x", dumpCommand, "port", "true", "x"}} {
		if status := runDump(argv, nil); status != 1 {
			t.Errorf("%v ended with %d", argv, status)
		}
	}
}
