package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

const maxLine = 64 << 10

// Why receive ended without a line. Only errAgentGone may be answered by connecting again.
var (
	errAgentGone = errors.New("the connection to the node agent broke")
	errDeadline  = errors.New("the deadline passed")
	errBadAnswer = errors.New("the node agent's answer is malformed")
	errWatched   = errors.New("a process of the restore died")
)

// agentConn is a connection to the agent. It is a bare descriptor, because the hook must poll it together with pidfds.
type agentConn struct {
	fd  int
	buf []byte
}

// dialAgent connects once. Only root may answer: whoever answers decides what a privileged restore runs.
func dialAgent(cfg *Config) (*agentConn, error) { return dialSocket(cfg, cfg.socket()) }

func dialSocket(cfg *Config, path string) (*agentConn, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Type() != fs.ModeSocket || int(stat.Uid) != cfg.Owner {
		return nil, fmt.Errorf("%s is not a socket of root", path)
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	conn := &agentConn{fd: fd}
	if err := conn.connect(cfg, path); err != nil {
		conn.close()
		return nil, err
	}
	return conn, nil
}

// connect bounds connecting and sending: an agent that does not accept must not hold us beyond the deadline.
func (c *agentConn) connect(cfg *Config, path string) error {
	limit := syscall.Timeval{Sec: 2}
	if err := syscall.SetsockoptTimeval(c.fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	if err := syscall.Connect(c.fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		return fmt.Errorf("connect to %s: %w", path, err)
	}
	peer, err := syscall.GetsockoptUcred(c.fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil {
		return err
	}
	if int(peer.Uid) != cfg.Owner {
		return fmt.Errorf("%s is served by uid %d", path, peer.Uid)
	}
	return nil
}

func (c *agentConn) close() {
	if c != nil && c.fd >= 0 {
		syscall.Close(c.fd)
		c.fd = -1
	}
}

// send writes one line.
func (c *agentConn) send(message any) error {
	data, err := encode(message)
	if err != nil {
		return err
	}
	return c.write(append(data, '\n'))
}

func (c *agentConn) write(data []byte) error {
	for len(data) > 0 {
		n, err := syscall.SendmsgN(c.fd, data, nil, nil, syscall.MSG_NOSIGNAL)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: %v", errAgentGone, err)
		}
		data = data[n:]
	}
	return nil
}

// receive reads one line into answer. Meanwhile it watches pidfds; a death wins over an answer that came with it.
func (c *agentConn) receive(answer any, deadline int64, watched []int) error {
	for {
		if end := bytes.IndexByte(c.buf, '\n'); end >= 0 {
			line := c.buf[:end]
			c.buf = c.buf[end+1:]
			if err := json.Unmarshal(line, answer); err != nil {
				return fmt.Errorf("%w: %v", errBadAnswer, err)
			}
			return nil
		}
		if len(c.buf) > maxLine {
			return fmt.Errorf("%w: a line of more than %d bytes", errBadAnswer, maxLine)
		}
		if err := c.wait(deadline, watched); err != nil {
			return err
		}
	}
}

// wait blocks until there are more bytes in buf.
func (c *agentConn) wait(deadline int64, watched []int) error {
	ready, err := pollFds(append([]int{c.fd}, watched...), time.Duration(deadline-boottime()))
	if err != nil {
		return err
	}
	for _, dead := range ready[1:] {
		if dead {
			return errWatched
		}
	}
	if boottime() >= deadline {
		return errDeadline
	}
	if !ready[0] {
		return nil
	}
	chunk := make([]byte, 4096)
	n, err := syscall.Read(c.fd, chunk)
	if errors.Is(err, syscall.EINTR) {
		return nil
	}
	if err != nil || n == 0 {
		return errAgentGone
	}
	c.buf = append(c.buf, chunk[:n]...)
	return nil
}
