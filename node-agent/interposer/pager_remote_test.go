package main

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pagesAgent stands in for the node agent: it has the memory of the source, or says that it is lost.
type pagesAgent struct {
	t      *testing.T
	p      *paging
	at     string
	mutex  sync.Mutex
	asked  []span
	hello  string
	lost   string
	block  chan struct{} // closed: bulk requests are answered
	breaks int           // how many connections break after a request
	listen net.Listener
}

func serveRemote(t *testing.T, p *paging) *pagesAgent {
	t.Helper()
	a := &pagesAgent{t: t, p: p, at: filepath.Join(p.l.cfg.RunDir, "pages.sock"), block: make(chan struct{})}
	a.open()
	t.Cleanup(func() { a.listen.Close() })
	return a
}

func (a *pagesAgent) open() {
	listener, err := net.Listen("unix", a.at)
	must(a.t, err)
	a.listen = listener
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go a.serve(conn)
		}
	}()
}

func (a *pagesAgent) serve(conn net.Conn) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	hello, err := reader.ReadString('\n')
	if err != nil {
		return
	}
	for {
		head := make([]byte, 8)
		if _, err := io.ReadFull(reader, head); err != nil {
			return
		}
		spans := make([]byte, 16*binary.LittleEndian.Uint32(head[4:]))
		if _, err := io.ReadFull(reader, spans); err != nil {
			return
		}
		var data []byte
		a.mutex.Lock()
		a.hello = hello
		for ; len(spans) > 0; spans = spans[16:] {
			start, length := binary.LittleEndian.Uint64(spans), binary.LittleEndian.Uint64(spans[8:])
			a.asked = append(a.asked, span{start, start + length})
			from := start - a.p.address(0)
			data = append(data, a.p.pages[from:from+length]...)
		}
		lost, broken := a.lost, a.breaks > 0
		a.breaks--
		a.mutex.Unlock()
		if broken {
			return
		}
		status, answer := uint32(pagesHere), data
		if lost != "" {
			status, answer = pagesLost, []byte(lost)
		}
		if len(data) > faultBytes {
			<-a.block
		}
		out := binary.LittleEndian.AppendUint32(nil, status)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(answer)))
		if _, err := conn.Write(append(out, answer...)); err != nil {
			return
		}
	}
}

func TestPagerAsksTheSourceForWhatStayedThere(t *testing.T) {
	p := startPagingOf(t, entryLazy)
	a := serveRemote(t, p)
	p.hand()
	p.check(1000, 1001)
	p.check(pagedPages, 0)
	p.say(restoreFinished)
	eventually(t, "all that is asked for at once is asked for", func() bool {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		return len(a.asked) > 1
	})
	p.check(2000, 2001) // while nothing of the rest comes
	close(a.block)
	if code := p.ended(); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.l.read("run/images/m1/app/hook.log"))
	}
	for page := range pagedPages {
		p.check(page, uint64(page)+1)
	}
	if !strings.Contains(a.hello, `"migration":"m1","container":"app"`) {
		t.Error(a.hello)
	}
	seen := map[uint64]int{}
	for _, it := range a.asked {
		for at := it.start; at < it.end; at += pageSize {
			if seen[at]++; seen[at] > 1 {
				t.Fatalf("page %d was asked for twice", (at-p.address(0))/pageSize)
			}
		}
	}
}

func TestPagerFindsWhatCameWhereTheProcessHasMovedIt(t *testing.T) {
	p := startPagingOf(t, entryLazy)
	a := serveRemote(t, p)
	p.hand()
	p.say(restoreFinished)
	eventually(t, "the rest is on its way", func() bool {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		return len(a.asked) == bulkRequests
	})
	must(t, syscall.Madvise(p.memory[100*pageSize:200*pageSize], syscall.MADV_DONTNEED))
	place := p.move(300)
	close(a.block)
	if code := p.ended(); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.l.read("run/images/m1/app/hook.log"))
	}
	p.checkMoved(300, place)
}

func TestPagerWaitsForAnAgentThatComesBack(t *testing.T) {
	p := startPagingOf(t, entryLazy)
	p.hand()
	p.say(restoreFinished)
	touched := make(chan struct{})
	go func() {
		p.check(7, 8)
		close(touched)
	}()
	select {
	case <-touched:
		t.Fatal("a page came from nowhere")
	case <-time.After(300 * time.Millisecond):
	}
	a := &pagesAgent{t: t, p: p, at: filepath.Join(p.l.cfg.RunDir, "pages.sock"), block: make(chan struct{}), breaks: 3}
	close(a.block)
	a.open()
	defer a.listen.Close()
	if code := p.ended(); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.l.read("run/images/m1/app/hook.log"))
	}
	<-touched
	for page := range pagedPages {
		p.check(page, uint64(page)+1)
	}
}

func TestPagerFailsWhenTheMemoryIsLost(t *testing.T) {
	p := startPagingOf(t, entryLazy)
	a := serveRemote(t, p)
	a.lost = "the source died"
	close(a.block)
	p.hand()
	p.say(restoreFinished)
	if code := p.ended(); code == 0 {
		t.Fatal("it says that all is well")
	}
	if said := p.l.read("run/images/m1/app/hook.log"); !strings.Contains(said, "the memory is lost: the source died") {
		t.Fatal(said)
	}
}

func TestARequestGoesAroundWhatIsOnItsWay(t *testing.T) {
	c := &pageClient{flying: []*block{{pid: 7, spans: []span{{0x2000, 0x4000}}}, {pid: 7, spans: []span{{0x4000, 0x5000}}}}}
	if at := c.next(7, 0x2000); at != 0x5000 {
		t.Errorf("next: %#x", at)
	}
	if at := c.next(8, 0x2000); at != 0x2000 {
		t.Errorf("of another process: %#x", at)
	}
	if end := c.ahead(7, 0x1000, 0x9000); end != 0x2000 {
		t.Errorf("ahead: %#x", end)
	}
	if start := c.behind(7, 0x1000, 0x6000); start != 0x5000 {
		t.Errorf("behind: %#x", start)
	}
}
