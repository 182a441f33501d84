package relay

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"tidemark"
)

// forgetful is an NBD server that at a crash loses a random part of what was
// written and not flushed, and answers in any order.
type forgetful struct {
	mu      sync.Mutex
	durable []byte
	cached  []byte
	rng     *rand.Rand
	dies    int // requests until it crashes; -1 never
	conns   map[net.Conn]bool
	epoch   int
	bad     func([]byte) []byte // changes a reply
	flush   uint32              // answer to flushes
	size    int64               // what it says, if not the truth
}

func newForgetful(size int, rng *rand.Rand) *forgetful {
	return &forgetful{durable: make([]byte, size), cached: make([]byte, size), rng: rng, dies: -1, conns: map[net.Conn]bool{}}
}

// crash drops all connections and some of the 512-byte sectors not flushed.
func (f *forgetful) crash() {
	f.epoch++
	for c := range f.conns {
		c.Close()
		delete(f.conns, c)
	}
	for i := 0; i < len(f.durable); i += 512 {
		if f.rng.IntN(2) == 0 {
			copy(f.durable[i:i+512], f.cached[i:])
		}
	}
	copy(f.cached, f.durable)
}

func (f *forgetful) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.conns[c] = true
		epoch := f.epoch
		f.mu.Unlock()
		go f.session(c, epoch)
	}
}

func (f *forgetful) greet(c net.Conn) error {
	b := binary.BigEndian.AppendUint64(nil, magicInit)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	if _, err := c.Write(b); err != nil {
		return err
	}
	req := make([]byte, 4+16)
	if _, err := io.ReadFull(c, req); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, make([]byte, binary.BigEndian.Uint32(req[16:]))); err != nil {
		return err
	}
	size := int64(len(f.durable))
	if f.size != 0 {
		size = f.size
	}
	info := binary.BigEndian.AppendUint16(nil, infoExport)
	info = binary.BigEndian.AppendUint64(info, uint64(size))
	info = binary.BigEndian.AppendUint16(info, 1|flagSendFlush|flagWriteZeroes|flagMultiConn)
	b = optReply(nil, repInfo, info)
	_, err := c.Write(optReply(b, repAck, nil))
	return err
}

func optReply(b []byte, typ uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOptReply)
	b = binary.BigEndian.AppendUint32(b, optGo)
	b = binary.BigEndian.AppendUint32(b, typ)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func (f *forgetful) session(c net.Conn, epoch int) {
	defer c.Close()
	if f.greet(c) != nil {
		return
	}
	for {
		h := make([]byte, requestSize)
		if _, err := io.ReadFull(c, h); err != nil {
			return
		}
		cmd := binary.BigEndian.Uint16(h[6:])
		n := binary.BigEndian.Uint32(h[24:])
		var data []byte
		if cmd == cmdWrite {
			data = make([]byte, n)
			if _, err := io.ReadFull(c, data); err != nil {
				return
			}
		}
		if cmd == cmdDisconnect {
			return
		}
		f.mu.Lock()
		if f.epoch != epoch {
			f.mu.Unlock()
			return
		}
		reply := f.do(cmd, h, data)
		if f.dies > 0 {
			f.dies--
		}
		if f.dies == 0 {
			f.dies = -1
			if f.rng.IntN(2) == 0 { // after the answer, or before
				c.Write(reply)
			}
			f.crash()
			f.mu.Unlock()
			return
		}
		_, err := c.Write(reply)
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (f *forgetful) do(cmd uint16, h, data []byte) []byte {
	off, n := binary.BigEndian.Uint64(h[16:]), uint64(binary.BigEndian.Uint32(h[24:]))
	reply := make([]byte, replySize)
	binary.BigEndian.PutUint32(reply, magicReply)
	copy(reply[8:], h[8:16])
	switch cmd {
	case cmdRead:
		reply = append(reply, f.cached[off:off+n]...)
	case cmdWrite:
		copy(f.cached[off:], data)
	case cmdWriteZeroes:
		clear(f.cached[off : off+n])
	case cmdFlush:
		binary.BigEndian.PutUint32(reply[4:], f.flush)
		if f.flush == 0 {
			copy(f.durable, f.cached)
		}
	}
	if f.bad != nil {
		reply = f.bad(reply)
	}
	return reply
}

// connect opens a relay of f.
func connect(t *testing.T, f *forgetful, change func(*Options)) *Relay {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, f, l)
	opt := Options{Network: "unix", Address: sock, Export: "x", LogBytes: 1 << 20, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&opt)
	}
	r, err := Open(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// serve has f serve a listener until the end of the test.
func serve(t *testing.T, f *forgetful, l net.Listener) {
	t.Cleanup(func() {
		l.Close()
		f.mu.Lock()
		f.crash()
		f.mu.Unlock()
	})
	go f.serve(l)
}

// connectSecure opens a relay of f over TLS. The numbers of its sessions must grow.
func connectSecure(t *testing.T, f *forgetful, _ func(*Options)) *Relay {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, f, l)
	var mu sync.Mutex
	var last uint64
	dial := func(ctx context.Context, session uint64) (net.Conn, error) {
		mu.Lock()
		if session < last {
			t.Errorf("session %d after %d", session, last)
		}
		last = session
		mu.Unlock()
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}
	r, err := Open(t.Context(), Options{Dial: dial, Address: "it", Export: "x", LogBytes: 1 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// A server that has shut us out for good ends the disk, and not at once; one that refuses us for something that may pass does not, and who gets something to
// be let in by meanwhile goes on.
func TestShutOut(t *testing.T) {
	denied := tidemark.Errorf(tidemark.Denied, "by this clock the certificate is not good")
	for name, x := range map[string]struct {
		refusals []error
		ends     bool
	}{
		"for good":    {slices.Repeat([]error{fmt.Errorf("%w: %w", ErrShutOut, denied)}, 100), true},
		"for a while": {slices.Repeat([]error{denied}, 2), false},
		"joins anew":  {[]error{fmt.Errorf("%w: %w", ErrShutOut, denied)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newForgetful(1<<20, rand.New(rand.NewPCG(1, 1)))
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			serve(t, f, l)
			var mu sync.Mutex
			var refused bool
			left := x.refusals
			dial := func(ctx context.Context, _ uint64) (net.Conn, error) {
				mu.Lock()
				defer mu.Unlock()
				if refused && len(left) > 0 {
					err := left[0]
					left = left[1:]
					return nil, err
				}
				return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
			}
			r, err := Open(t.Context(), Options{Dial: dial, Address: "it", Export: "x", LogBytes: 8 << 20, Log: slog.New(slog.DiscardHandler), shutOutFor: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.Close() })
			mu.Lock()
			refused = true
			mu.Unlock()
			f.mu.Lock()
			f.crash()
			f.mu.Unlock()
			for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
				st := r.Status()
				if st.GaveUp && x.ends || st.Reconnects > 0 && !x.ends {
					break
				}
				if st.GaveUp || st.Reconnects > 0 || time.Now().After(end) {
					t.Fatalf("%+v", st)
				}
			}
		})
	}
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(crand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// kernel plays /dev/fuse: a datagram socket pair takes the answers whole.
type kernel struct {
	t    *testing.T
	r    *Relay
	fds  [2]int
	next uint64
}

func newKernel(t *testing.T, r *Relay) *kernel {
	k := &kernel{t: t, r: r}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	k.fds = [2]int{fds[0], fds[1]}
	tv := unix.Timeval{Sec: 60} // a machine that does other things may stand still for some
	if err := unix.SetsockoptTimeval(fds[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); unix.Close(fds[0]); unix.Close(fds[1]) })
	return k
}

// ask sends one request on a lane and returns its name.
func (k *kernel) ask(lane int, do func(l *lane, to asker, unique uint64)) uint64 {
	k.next++
	l := k.r.lanes[lane%len(k.r.lanes)]
	l.begin()
	do(l, &channel{k.fds[0]}, k.next)
	l.end()
	return k.next
}

// answer waits for one answer.
func (k *kernel) answer() (unique uint64, e unix.Errno, data []byte) {
	k.t.Helper()
	b := make([]byte, 128<<10)
	n, err := unix.Read(k.fds[1], b)
	for err == unix.EINTR {
		n, err = unix.Read(k.fds[1], b)
	}
	if err != nil || n < outHeader || int(native.Uint32(b)) != n {
		stacks := make([]byte, 1<<20)
		k.t.Fatalf("an answer of %d bytes, %v; status %+v\n%s\n%s", n, err, k.r.Status(), k.open(), stacks[:runtime.Stack(stacks, true)])
	}
	return native.Uint64(b[8:]), unix.Errno(-int32(native.Uint32(b[4:]))), b[outHeader:n]
}

// open describes the requests that were not answered.
func (k *kernel) open() string {
	var b strings.Builder
	for i, l := range k.r.lanes {
		l.slotMu.Lock()
		for j, s := range l.slots {
			if s.op != opNone {
				fmt.Fprintf(&b, "lane %d, slot %d: %+v\n", i, j, s)
			}
		}
		l.slotMu.Unlock()
	}
	return b.String()
}

// TestNothingIsLost is the promise: random writes, zeroings, flushes and reads
// in flight together, on a server that crashes all the time and forgets what was
// not flushed; every read and the end must show the model.
func TestNothingIsLost(t *testing.T) {
	runs := 20
	if os.Getenv("TIDEMARK_LONG") != "" {
		runs = 500
	}
	for range runs {
		seed := uint64(time.Now().UnixNano())
		if !t.Run("", func(t *testing.T) { testNothingIsLost(t, seed, connect) }) {
			t.Fatalf("seed %d", seed)
		}
	}
	for range runs / 4 {
		seed := uint64(time.Now().UnixNano())
		if !t.Run("TLS", func(t *testing.T) { testNothingIsLost(t, seed, connectSecure) }) {
			t.Fatalf("seed %d", seed)
		}
	}
}

func testNothingIsLost(t *testing.T, seed uint64, connect func(*testing.T, *forgetful, func(*Options)) *Relay) {
	const blocks, block = 64, 4096
	rng := rand.New(rand.NewPCG(seed, 0))
	f := newForgetful(blocks*block, rand.New(rand.NewPCG(seed, 1)))
	r := connect(t, f, nil)
	k := newKernel(t, r)
	model := make([]byte, blocks*block)
	type waiting struct {
		at   int
		want []byte // of a read
	}
	open := map[uint64]waiting{}
	busy := map[int]bool{} // one request at a time on a block: the order of two is anybody's
	take := func() {
		u, e, data := k.answer()
		w, ok := open[u]
		if !ok || e != 0 {
			t.Fatalf("answer to %d: %v (asked: %v)", u, e, ok)
		}
		if w.want != nil && !bytes.Equal(data, w.want) {
			t.Fatalf("block %d: wrong bytes", w.at)
		}
		delete(open, u)
		delete(busy, w.at)
	}
	for range 600 {
		if rng.IntN(25) == 0 {
			f.mu.Lock()
			f.dies = 1 + rng.IntN(20)
			f.mu.Unlock()
		}
		for len(open) >= 16 {
			take()
		}
		at := rng.IntN(blocks)
		for busy[at] {
			take()
		}
		off := int64(at) * block
		disk := model[off : off+block]
		w := waiting{at: at}
		var u uint64
		switch rng.IntN(10) {
		case 0:
			w.at = -1
			u = k.ask(rng.IntN(2), func(l *lane, to asker, u uint64) { l.flush(to, u) })
		case 1:
			clear(disk)
			u = k.ask(rng.IntN(2), func(l *lane, to asker, u uint64) { l.zero(to, u, off, block, false) })
		case 2, 3, 4:
			w.want = bytes.Clone(disk)
			u = k.ask(rng.IntN(2), func(l *lane, to asker, u uint64) { l.read(to, u, off, block) })
		default:
			for i := range disk {
				disk[i] = byte(rng.Uint32())
			}
			u = k.ask(rng.IntN(2), func(l *lane, to asker, u uint64) { l.write(to, u, off, disk) })
		}
		open[u], busy[w.at] = w, w.at >= 0
	}
	u := k.ask(0, func(l *lane, to asker, u uint64) { l.flush(to, u) })
	open[u] = waiting{at: -1}
	for len(open) > 0 {
		take()
	}
	// The last flush was asked while writes were in flight: ask for those.
	open[k.ask(0, func(l *lane, to asker, u uint64) { l.flush(to, u) })] = waiting{at: -1}
	take()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !bytes.Equal(f.durable, model) {
		t.Fatal("what was flushed is not there")
	}
}

// TestLogFullFlushes checks that many more writes than fit need no flush of the kernel's.
func TestLogFullFlushes(t *testing.T) {
	f := newForgetful(1<<20, rand.New(rand.NewPCG(1, 1)))
	r := connect(t, f, nil)
	k := newKernel(t, r)
	data := make([]byte, 64<<10)
	for i := range 200 {
		k.ask(i, func(l *lane, to asker, u uint64) { l.write(to, u, int64(i%16)<<16, data) })
		if _, e, _ := k.answer(); e != 0 {
			t.Fatal(e)
		}
	}
}

// TestFlushFails checks that no flush succeeds after one failed, until a replay.
func TestFlushFails(t *testing.T) {
	f := newForgetful(1<<20, rand.New(rand.NewPCG(1, 1)))
	r := connect(t, f, nil)
	k := newKernel(t, r)
	flush := func(l *lane, to asker, u uint64) { l.flush(to, u) }
	set := func(e uint32) { f.mu.Lock(); f.flush = e; f.mu.Unlock() }
	k.ask(0, func(l *lane, to asker, u uint64) { l.write(to, u, 0, []byte("hello")) })
	k.answer()
	set(uint32(unix.EIO))
	for range 2 {
		k.ask(0, flush)
		if _, e, _ := k.answer(); e != unix.EIO {
			t.Fatalf("a failed flush: %v", e)
		}
		set(0)
	}
	f.mu.Lock()
	copy(f.cached, f.durable)
	copy(f.cached, "lost!")
	f.crash()
	f.mu.Unlock()
	for range 200 {
		if st := r.Status(); st.Reconnects == 1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	k.ask(0, flush)
	_, e, _ := k.answer()
	f.mu.Lock()
	defer f.mu.Unlock()
	if e != 0 || string(f.durable[:5]) != "hello" {
		t.Fatalf("after a replay: %v, %q", e, f.durable[:5])
	}
}

// TestHostileServer sends what no server should, and expects a new session or a
// clear error, never a wrong answer.
func TestHostileServer(t *testing.T) {
	for what, bad := range map[string]func([]byte) []byte{
		"magic":  func(b []byte) []byte { b[0]++; return b },
		"cookie": func(b []byte) []byte { b[15] += 7; return b },
		"gen":    func(b []byte) []byte { b[9]++; return b },
		"down":   func(b []byte) []byte { b[7] = nbdShutdown; return b[:replySize] },
		"twice":  func(b []byte) []byte { return append(b, b...) },
	} {
		t.Run(what, func(t *testing.T) {
			f := newForgetful(1<<20, rand.New(rand.NewPCG(1, 1)))
			r := connect(t, f, nil)
			k := newKernel(t, r)
			times := 3
			f.mu.Lock()
			f.bad = func(b []byte) []byte {
				if times--; times < 0 {
					return b
				}
				return bad(b)
			}
			f.mu.Unlock()
			k.ask(0, func(l *lane, to asker, u uint64) { l.read(to, u, 0, 4096) })
			if _, e, data := k.answer(); e != 0 || !bytes.Equal(data, make([]byte, 4096)) {
				t.Fatalf("%v, %d bytes", e, len(data))
			}
		})
	}
}

// TestOtherExport checks that a server which comes back with another disk gets
// nothing: no write may land there.
func TestOtherExport(t *testing.T) {
	f := newForgetful(1<<20, rand.New(rand.NewPCG(1, 1)))
	r := connect(t, f, nil)
	k := newKernel(t, r)
	f.mu.Lock()
	f.size = 2 << 20
	f.crash()
	f.mu.Unlock()
	k.ask(0, func(l *lane, to asker, u uint64) { l.write(to, u, 0, []byte("x")) })
	time.Sleep(50 * time.Millisecond)
	if st := r.Status(); st.Connected || st.LastError == "" {
		t.Fatalf("%+v", st)
	}
	f.mu.Lock()
	f.size = 0
	f.mu.Unlock()
	if _, e, _ := k.answer(); e != 0 {
		t.Fatal(e)
	}
}

func TestOpenErrors(t *testing.T) {
	for _, hello := range []string{"", "garbage garbage garbage", "NBDMAGICIHAVEOPT\x00\x00", "NBDMAGICIHAVEOPT\x00\x03" + string(make([]byte, 20))} {
		client, server := net.Pipe()
		go func() {
			go io.Copy(io.Discard, server)
			io.WriteString(server, hello)
			server.Close()
		}()
		if _, err := negotiate(client, "x"); err == nil {
			t.Errorf("%q: no error", hello)
		}
		client.Close()
	}
}

// pipe is a server that has said everything already.
type pipe struct{ io.Reader }

func (pipe) Write(b []byte) (int, error) { return len(b), nil }

func FuzzNegotiate(f *testing.F) {
	hello := []byte("NBDMAGICIHAVEOPT\x00\x03")
	info := append([]byte{0, 0}, make([]byte, 10)...)
	f.Add(optReply(optReply(hello, repInfo, info), repAck, nil))
	f.Add(optReply(hello, repError|6, []byte("no")))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := negotiate(pipe{bytes.NewReader(b)}, "x")
		if err == nil && (info.Size < 0 || info.MinBlock < 1 || info.MaxBlock < info.MinBlock) {
			t.Fatalf("%+v", info)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add([]byte("\x67\x44\x66\x98\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		log, err := newReplayLog(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		defer log.free()
		l := newLane(&Relay{log: log, info: Info{Flags: flagSendFlush, Size: 1 << 20}})
		l.r.opt.Log = slog.New(slog.DiscardHandler)
		l.r.wantFlush = make(chan struct{}, 1)
		l.slot(slot{op: opRead, n: 8})
		l.slot(slot{op: opFlush})
		for len(b) >= replySize {
			used, err := l.reply(b)
			if err != nil || used == 0 {
				return
			}
			b = b[used:]
		}
	})
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { os.Exit(code) }))
}
