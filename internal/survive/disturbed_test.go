package survive

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

const disturbedSize = 48 << 20

// differs tells where two disks differ first.
func differs(a, b []byte) string {
	if len(a) != len(b) {
		return fmt.Sprintf("%d bytes and %d", len(a), len(b))
	}
	for i := range a {
		if a[i] != b[i] {
			return fmt.Sprintf("byte %d", i)
		}
	}
	return "nowhere"
}

// A disturbance is something bad that happens to what is behind a tap while production writes, and is mended in the end.
type disturbance struct {
	name string
	do   func(x *tapping)
	// patient: nothing that production itself goes through is touched, so that no write takes long.
	patient bool
}

var disturbances = []disturbance{
	{"the server is stopped for seconds", (*tapping).stopServer, true},
	{"the disk of the server is full", (*tapping).fillDisk, true},
	{"the connection is slow and cut", (*tapping).slowAndCut, false},
	{"the server is killed", func(x *tapping) {
		x.end(syscall.SIGKILL)
		x.pause(100, 2000)
		x.start()
	}, true},
	{"the tap is killed", func(x *tapping) {
		x.killTap()
		x.pause(0, 500)
	}, false},
	{"the server is killed, and then the tap", func(x *tapping) {
		x.end(syscall.SIGKILL)
		x.pause(0, 1000)
		x.killTap()
		x.pause(500, 2000)
		x.start()
	}, false},
}

// disturbance is what a round does: each in turn first, then any one, and now and then for minutes.
func (x *tapping) disturbance(round int) (d disturbance, times int) {
	if round < len(disturbances) {
		return disturbances[round], 1
	}
	times = 1
	if x.rng.IntN(10) == 0 {
		times = 5 + x.rng.IntN(25)
	}
	return disturbances[x.rng.IntN(len(disturbances))], times
}

// pause waits a random time.
func (x *tapping) pause(least, most int) {
	time.Sleep(time.Duration(least+x.rng.IntN(most-least)) * time.Millisecond)
}

func (x *tapping) stopServer() {
	x.cmd.Process.Signal(syscall.SIGSTOP)
	x.pause(1500, 4000)
	x.cmd.Process.Signal(syscall.SIGCONT)
}

// fillDisk takes all the room that the server has for some seconds.
func (x *tapping) fillDisk() {
	x.t.Helper()
	filler := filepath.Join(x.data, "filler")
	f, err := os.Create(filler)
	if err != nil {
		x.t.Fatal(err)
	}
	defer f.Close()
	end := time.Now().Add(time.Duration(2000+x.rng.IntN(2000)) * time.Millisecond)
	for size, step := int64(0), int64(256<<20); time.Now().Before(end); {
		if unix.Fallocate(int(f.Fd()), 0, size, step) == nil {
			size += step
		} else if step > 4096 {
			step /= 2
		} else {
			time.Sleep(20 * time.Millisecond) // others give room up
		}
	}
	if err := os.Remove(filler); err != nil {
		x.t.Fatal(err)
	}
}

// slowAndCut has a tap reach its server through a proxy, which lets little through and cuts what it has now and then. A tap
// that has a connection already keeps it, and so this begins with another tap.
func (x *tapping) slowAndCut() {
	x.t.Helper()
	socket := filepath.Join(x.data, "run", "taps.sock")
	p := &proxy{server: socket + ".server"}
	if err := os.Rename(socket, p.server); err != nil {
		x.t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		x.t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	go p.accept(l)
	x.killTap()
	for range 3 {
		x.pause(300, 1500)
		p.cut()
	}
	l.Close()
	if err := os.Rename(p.server, socket); err != nil {
		x.t.Fatal(err)
	}
	p.cut()
	if p.through == 0 {
		x.t.Error("nothing went through the proxy")
	}
}

// proxy gives connections on to a server, slowly.
type proxy struct {
	server  string
	mu      sync.Mutex
	open    []net.Conn
	through int64
}

func (p *proxy) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("unix", p.server)
		if err != nil {
			c.Close()
			continue
		}
		p.mu.Lock()
		p.open = append(p.open, c, s)
		p.mu.Unlock()
		go p.give(s, c)
		go p.give(c, s)
	}
}

// give copies some 2 MiB in a second.
func (p *proxy) give(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	for {
		n, err := io.CopyN(to, from, 1+20_000)
		p.mu.Lock()
		p.through += n
		p.mu.Unlock()
		if err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open {
		c.Close()
	}
	p.open = nil
}

// smallData makes the data directory a file system of its own, which can be filled.
func (x *stage) smallData(size string) {
	x.t.Helper()
	file := filepath.Join(x.dir, "small")
	must(x.t, "truncate", "-s", size, file)
	must(x.t, "mkfs.ext4", "-q", "-b", "4096", "-m", "0", file)
	if err := os.Mkdir(x.data, 0o711); err != nil {
		x.t.Fatal(err)
	}
	must(x.t, "mount", "-o", "loop", file, x.data) // strike takes it away
}

// TestTappedDisturbed (C1, J1, J3) lets production write to a tapped disk, with a model of every byte at every moment, while bad things
// happen behind the tap. Production sees no error and, where the tap itself lives, does not wait; afterwards the primary is the
// model, the timeline is the primary, and of the time in between every moment is what it was or is refused.
func TestTappedDisturbed(t *testing.T) {
	need(t, "mkfs.ext4")
	n := len(disturbances)
	if os.Getenv("TIDEMARK_LONG") != "" {
		n = 100
	}
	x := newTapping(t, disturbedSize, func(disk string) {}, "--window", "3m", "-o", "queue_memory=4MiB", "-o", "queue=8MiB")
	for round := range n {
		d, times := x.disturbance(round)
		w := newScribe(x, disturbedSize)
		x.pause(200, 600)
		begun := time.Now()
		for range times {
			d.do(x)
		}
		x.pause(200, 600)
		w.stop()
		if t.Failed() {
			t.Fatalf("round %d: %s", round, d.name)
		}
		if d.patient && w.slowest > 3*time.Second {
			t.Errorf("round %d: %s, and a write took %v", round, d.name, w.slowest)
		}
		x.mended(w)
		shown, refused := x.checkMoments(w, 2)
		t.Logf("round %d: %s (%d times) for %v: %d writes, the slowest %v; %d moments shown, %d refused", round, d.name, times,
			time.Since(begun).Round(time.Millisecond), len(w.log), w.slowest.Round(time.Millisecond), shown, refused)
	}
	for _, g := range ask[tidemark.Points](x.stage, "points", "prod", "--intervals").Gaps {
		if g.To.IsZero() || g.To.Before(g.From) || g.Reason == "" || strings.Contains(g.Reason, "\n") {
			t.Errorf("a gap that is over: %+v", g)
		}
	}
	x.run("unprotect", "prod")
}

// mended checks that the primary is what was written, and that the timeline becomes that.
func (x *tapping) mended(w *scribe) {
	x.t.Helper()
	have, err := os.ReadFile(x.disk)
	if err != nil {
		x.t.Fatal(err)
	}
	if want := w.model(len(w.log)); !bytes.Equal(have, want) {
		x.t.Fatalf("the primary is not what was written: %s", differs(have, want))
	}
	x.same()
}
