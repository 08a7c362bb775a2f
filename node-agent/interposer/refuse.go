package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// refuse writes the sentence where the runtime looks for it, so that it ends in the pod's events: the last error line of
// runc's --log file. Like runc it also writes it to stderr. It returns the exit code.
func refuse(cmd command, message string) int {
	message = strings.Join(strings.Fields(message), " ")
	fmt.Fprintln(os.Stderr, message)
	path := cmd.options["log"]
	if path == "" {
		return 1
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 1
	}
	defer file.Close()
	now := time.Now().Format(time.RFC3339)
	if cmd.options["log-format"] != "json" && cmd.options["log-format"] != "" {
		fmt.Fprintf(file, "time=%q level=error msg=%q\n", now, message)
		return 1
	}
	line, _ := json.Marshal(map[string]string{"level": "error", "msg": message, "time": now})
	_, _ = file.Write(append(line, '\n'))
	return 1
}

// shorten keeps a message from the outside within what an event can hold.
func shorten(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "…"
}
