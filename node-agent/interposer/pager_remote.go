package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// What a PostCopy leaves in the frozen processes of the source is asked of the node agent, which asks the source's
// (docs/protocol.md, section 10). On each connection, after a line that says which container is meant, one request after
// another, little-endian:
//
//	process (as the images count) uint32, ranges uint32, then for each range address uint64 and length uint64
//
// and its answer: status uint32 and length uint32, then the bytes of all ranges, or the reason why there are none.
const (
	pagesHere = 0
	pagesLost = 1

	maxRanges   = 64
	remoteBytes = 1 << 20 // at most, of one request
	maxReason   = 4096

	bulkRequests = 4 // at once, of what nobody waits for
	pagesPause   = 100 * time.Millisecond
)

// span is memory of a process of the source: [start, end) there.
type span struct{ start, end uint64 }

// block is a request, and in the end its answer.
type block struct {
	pid   int
	spans []span
	data  []byte
	err   error
}

func (b *block) size() uint64 {
	var size uint64
	for _, it := range b.spans {
		size += it.end - it.start
	}
	return size
}

// covers returns the end of a span of this block that holds an address.
func (b *block) covers(pid int, address uint64) (uint64, bool) {
	if b.pid == pid {
		for _, it := range b.spans {
			if it.start <= address && address < it.end {
				return it.end, true
			}
		}
	}
	return 0, false
}

// pageClient asks for memory of the source without ever making the pager wait: what was answered lies in `answers`, and
// `wake` can be read.
type pageClient struct {
	cfg     *Config
	hello   pagesHello
	urgent  chan *block
	bulk    chan *block
	answers chan *block
	wake    [2]int
	flying  []*block
}

// pagesHello is the first line of a connection.
type pagesHello struct {
	Migration string `json:"migration"`
	Container string `json:"container"`
}

// newPageClient reads off the image directory whose container it is: <images>/<migration>/<container>.
func newPageClient(cfg *Config, imageDir string) (*pageClient, error) {
	c := &pageClient{
		cfg:   cfg,
		hello: pagesHello{filepath.Base(filepath.Dir(imageDir)), filepath.Base(imageDir)},
		// A fault asks for one block and then waits: there are no more at once than threads, and each is asked for once.
		urgent: make(chan *block, 4096), bulk: make(chan *block, bulkRequests), answers: make(chan *block, 4096+bulkRequests),
	}
	if err := syscall.Pipe2(c.wake[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return nil, err
	}
	go c.work(c.urgent)
	for range bulkRequests {
		go c.work(c.bulk)
	}
	return c, nil
}

// request asks for a block, unless it cannot be taken right now.
func (c *pageClient) request(b *block, urgent bool) bool {
	queue := c.bulk
	if urgent {
		queue = c.urgent
	}
	select {
	case queue <- b:
		c.flying = append(c.flying, b)
		return true
	default:
		return false
	}
}

// answered returns what has come; it counts as on its way until it has `landed`.
func (c *pageClient) answered() []*block {
	var raw [64]byte
	_, _ = syscall.Read(c.wake[0], raw[:])
	var came []*block
	for {
		select {
		case b := <-c.answers:
			came = append(came, b)
		default:
			return came
		}
	}
}

func (c *pageClient) landed(b *block) {
	c.flying = slices.DeleteFunc(c.flying, func(it *block) bool { return it == b })
}

// next returns where, from this address on, nothing was asked for yet.
func (c *pageClient) next(pid int, address uint64) uint64 {
	for i := 0; i < len(c.flying); i++ {
		if end, ok := c.flying[i].covers(pid, address); ok {
			address, i = end, -1
		}
	}
	return address
}

// ahead returns where, from this address on and before end, something was asked for already.
func (c *pageClient) ahead(pid int, address, end uint64) uint64 {
	for _, b := range c.flying {
		for _, it := range b.spans {
			if b.pid == pid && it.start >= address {
				end = min(end, it.start)
			}
		}
	}
	return end
}

// behind returns where, from start on and before this address, what was asked for already ends.
func (c *pageClient) behind(pid int, start, address uint64) uint64 {
	for _, b := range c.flying {
		for _, it := range b.spans {
			if b.pid == pid && it.end <= address {
				start = max(start, it.end)
			}
		}
	}
	return start
}

// work answers one request after another on a connection of its own.
func (c *pageClient) work(queue <-chan *block) {
	var conn *agentConn
	for b := range queue {
		for {
			var err error
			if conn == nil {
				conn, err = c.dial()
			}
			if err == nil {
				err = conn.fetch(b)
			}
			if err == nil {
				break
			}
			// The agent is restarted, or the source is out of reach: whoever needs the page waits.
			conn.close()
			conn = nil
			time.Sleep(pagesPause)
		}
		c.answers <- b
		_, _ = syscall.Write(c.wake[1], []byte{0})
	}
}

func (c *pageClient) dial() (*agentConn, error) {
	conn, err := dialSocket(c.cfg, c.cfg.pagesSocket())
	if err != nil {
		return nil, err
	}
	if err := conn.send(c.hello); err != nil {
		conn.close()
		return nil, err
	}
	return conn, nil
}

// fetch sends a request and reads its answer; an error says that the connection is of no use any more.
func (c *agentConn) fetch(b *block) error {
	request := binary.LittleEndian.AppendUint32(nil, uint32(b.pid))
	request = binary.LittleEndian.AppendUint32(request, uint32(len(b.spans)))
	for _, it := range b.spans {
		request = binary.LittleEndian.AppendUint64(request, it.start)
		request = binary.LittleEndian.AppendUint64(request, it.end-it.start)
	}
	if err := c.write(request); err != nil {
		return err
	}
	head := make([]byte, 8)
	if err := c.readFull(head); err != nil {
		return err
	}
	status, length := binary.LittleEndian.Uint32(head), uint64(binary.LittleEndian.Uint32(head[4:]))
	switch {
	case status == pagesHere && length == b.size():
	case status == pagesLost && length <= maxReason:
	default:
		return fmt.Errorf("%w: status %d with %d bytes", errBadAnswer, status, length)
	}
	data := make([]byte, length)
	if err := c.readFull(data); err != nil {
		return err
	}
	if status == pagesLost {
		b.err = fmt.Errorf("the memory is lost: %s", data)
		return nil
	}
	b.data = data
	return nil
}

// readFull blocks until the buffer is full.
func (c *agentConn) readFull(buffer []byte) error {
	for len(buffer) > 0 {
		n, err := syscall.Read(c.fd, buffer)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return errAgentGone
		}
		buffer = buffer[n:]
	}
	return nil
}
