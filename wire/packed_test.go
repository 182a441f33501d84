package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"tidemark/capture"
)

// countedConn counts what is written to a connection.
type countedConn struct {
	net.Conn
	n *atomic.Int64
}

func (c countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// counting counts what a client writes to its connections.
func counting(c *Client) *atomic.Int64 {
	n, dial := new(atomic.Int64), c.Dial
	c.Dial = func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		return countedConn{conn, n}, err
	}
	return n
}

// text is data as of tables: rows with numbers in them.
func text(size int) []byte {
	rng := rand.New(rand.NewPCG(3, 4))
	var b []byte
	for len(b) < size {
		b = fmt.Appendf(b, "%08d, order of customer %d, %d.%02d EUR\n", len(b), rng.IntN(100_000), rng.IntN(1000), rng.IntN(100))
	}
	return b[:size]
}

func noise(size int) []byte {
	b := make([]byte, size)
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// mixed is noise and text, a block of each in turn.
func mixed(size int) []byte {
	b, t := noise(size), text(size)
	for at := 0; at < size; at += 8192 {
		copy(b[at:min(at+4096, size)], t[at:])
	}
	return b
}

// changesOf cuts data into changes of 8 KiB.
func changesOf(data []byte) (list []capture.Change) {
	for at := 0; at < len(data); at += 8192 {
		p := data[at:min(at+8192, len(data))]
		list = append(list, capture.Change{Off: int64(at), Len: int64(len(p)), Data: p})
	}
	return list
}

// What can be compressed is, on networks and between those who know it; what cannot costs nothing but its frames.
func TestBytesOnTheConnection(t *testing.T) {
	const size = 8 << 20
	for _, c := range []struct {
		name        string
		serve       func(*testing.T, Opener) (*Client, <-chan error)
		version     int
		data        []byte
		least, most float64 // of the data's bytes
	}{
		{"text", serveTCP, 4, text(size), 0, 0.35},
		{"the same again and again", serveTCP, 4, bytes.Repeat([]byte("tidemark"), size/8), 0, 0.01},
		{"noise", serveTCP, 4, noise(size), 1, 1.01},
		{"both in turn", serveTCP, 4, mixed(size), 0, 0.7},
		{"noise, and then text", serveTCP, 4, append(noise(size/2), text(size/2)...), 0, 0.7},
		{"noise, and then the same noise again and again", serveTCP, 4, append(noise(size/2), bytes.Repeat(noise(64<<10), 64<<20/(64<<10))...), 0, 0.6},
		{"text on this host", serve, 4, text(size), 1, 1.01},
		{"text from a client of version 3", serveTCP, 3, text(size), 1, 1.01},
		{"text to a server of version 3", serveOlder("tcp", 3), 4, text(size), 1, 1.01},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &book{}
			client, ended := c.serve(t, func(context.Context, string, string, capture.Sent) (Feed, bool, error) { return b, true, nil })
			sent := counting(client)
			s, err := client.openAs(t.Context(), c.version, "a", capture.Sent{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			list := changesOf(c.data)
			var want []string
			for _, x := range list {
				want = append(want, note(x))
			}
			if err := s.Apply(list); err != nil {
				t.Fatal(err)
			}
			if n, err := s.Sync(); err != nil || n != uint64(len(list)) {
				t.Fatalf("%d of %d are durable: %v", n, len(list), err)
			}
			s.Close()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if strings.Join(b.said, "\n") != strings.Join(want, "\n") {
				t.Error("something else arrived")
			}
			ratio := float64(sent.Load()) / float64(len(c.data))
			t.Logf("%d bytes went for %d: %.3f", sent.Load(), len(c.data), ratio)
			if ratio < c.least || ratio > c.most {
				t.Errorf("it should be from %.2f to %.2f", c.least, c.most)
			}
		})
	}
}

// A small change is sent by itself, whatever comes later.
func TestNothingWaitsToBeCompressed(t *testing.T) {
	b := &book{}
	client, _ := serveTCP(t, func(context.Context, string, string, capture.Sent) (Feed, bool, error) { return b, true, nil })
	s, err := client.Open(t.Context(), "a", capture.Sent{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 50 {
		if err := s.Apply([]capture.Change{{Len: 512, Data: text(512)}}); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(20 * time.Second); b.Applied() != uint64(i+1); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("change %d does not arrive by itself", i)
			}
		}
	}
}

// packedAs is the body of a frame that says that it is of n bytes with a CRC.
func packedAs(n, sum uint32, rest []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, n)
	return append(binary.LittleEndian.AppendUint32(b, sum), rest...)
}

// bomb is a frame of zstd that becomes size bytes, which its header says or does not say.
func bomb(tb testing.TB, size int, said bool) []byte {
	tb.Helper()
	var b bytes.Buffer
	e, err := zstd.NewWriter(&b, zstd.WithWindowSize(1<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		tb.Fatal(err)
	}
	if said {
		return e.EncodeAll(make([]byte, size), nil)
	}
	piece := make([]byte, 1<<20)
	for ; size > 0; size -= len(piece) {
		if _, err := e.Write(piece[:min(size, len(piece))]); err != nil {
			tb.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// Compressed changes that are not what they say are refused, and take no more memory than a frame may.
func TestWrongPackedIsRefused(t *testing.T) {
	plain := bytes.Join(encodeChanges(changesOf(text(64<<10))), nil)
	sum := crc32.Checksum(plain, castagnoli)
	z := packEncoder().EncodeAll(plain, nil)
	n := uint32(len(plain))
	const zeros = 64 << 20
	cut := packEncoder().EncodeAll(plain[:len(plain)-1], nil)
	for _, c := range []struct {
		name string
		body []byte
	}{
		{"nothing", nil},
		{"a head that is cut", packedAs(n, sum, nil)[:7]},
		{"no frame", packedAs(n, sum, nil)},
		{"a frame that is cut", packedAs(n, sum, z[:len(z)-1])},
		{"more than a frame may be", packedAs(maxBody+1, sum, z)},
		{"more than there can be", packedAs(1<<32-1, sum, z)},
		{"less than it becomes", packedAs(n-1, sum, z)},
		{"more than it becomes", packedAs(n+1, sum, z)},
		{"another checksum", packedAs(n, sum+1, z)},
		{"one frame behind another", packedAs(n, sum, append(bytes.Clone(z), z...))},
		{"garbage behind it", packedAs(n, sum, append(bytes.Clone(z), "garbage"...))},
		{"no zstd", packedAs(n, sum, plain)},
		{"no changes", packedAs(n-1, crc32.Checksum(plain[:n-1], castagnoli), cut)},
		{"a bomb", packedAs(maxBody, 0, bomb(t, zeros, true))},
		{"a bomb that does not say what it is", packedAs(maxBody, 0, bomb(t, zeros, false))},
		{"many of them", packedAs(maxBody, 0, bytes.Repeat(bomb(t, zeros, false), 100))},
		{"a window of gigabytes", packedAs(n, sum, []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xa0, 1, 0, 0})},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &book{}
			client, ended := serveTCP(t, func(context.Context, string, string, capture.Sent) (Feed, bool, error) { return b, true, nil })
			s, err := client.Open(t.Context(), "a", capture.Sent{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := s.(*stream).send(framePacked, c.body); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; !errors.Is(err, ErrProtocol) {
				t.Errorf("the server: %v", err)
			}
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; took > 4*maxBody {
				t.Errorf("it took %d bytes of memory", took)
			}
			if b.Applied() != 0 {
				t.Errorf("%d changes were applied", b.Applied())
			}
		})
	}
	for name, serve := range map[string]func(*testing.T, Opener) (*Client, <-chan error){"on this host": serve, "to one who did not hear of it": serveTCP} {
		t.Run(name, func(t *testing.T) {
			client, ended := serve(t, func(context.Context, string, string, capture.Sent) (Feed, bool, error) { return &book{}, true, nil })
			s, err := client.openAs(t.Context(), 3, "a", capture.Sent{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if err := s.(*stream).send(framePacked, packedAs(n, sum, z)); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; !errors.Is(err, ErrProtocol) {
				t.Errorf("the server: %v", err)
			}
		})
	}
}

// FuzzPacked takes what a peer may send for compressed changes: it is refused, or is just what it says, in no more memory than that; and what we
// compress ourselves comes back.
func FuzzPacked(f *testing.F) {
	plain := bytes.Join(encodeChanges(changesOf(text(20_000))), nil)
	sum := crc32.Checksum(plain, castagnoli)
	f.Add(packedAs(uint32(len(plain)), sum, packEncoder().EncodeAll(plain, nil)))
	f.Add(packedAs(maxBody, 0, bomb(f, 5<<20, false)))
	f.Add(packedAs(1<<20, crc32.Checksum(make([]byte, 1<<20), castagnoli), bomb(f, 1<<20, true)))
	f.Add(text(300))
	f.Add(noise(300))
	f.Fuzz(func(t *testing.T, body []byte) {
		buf := make([]byte, 100)
		got, err := unpack(body, buf)
		switch {
		case err != nil && !errors.Is(err, ErrProtocol):
			t.Errorf("an error of another kind: %v", err)
		case err == nil && (uint32(len(got)) != binary.LittleEndian.Uint32(body) || len(got) > maxBody || cap(got) > max(len(got), len(buf))):
			t.Errorf("%d bytes in memory of %d", len(got), cap(got))
		}
		_ = (&session{feed: &book{}, packs: true}).handle(framePacked, body)
		var p packer
		if packed := p.pack([][]byte{body, body}); packed != nil {
			if got, err := unpack(packed, nil); err != nil || !bytes.Equal(got, append(bytes.Clone(body), body...)) {
				t.Errorf("what was compressed is something else: %v", err)
			}
		}
	})
}

// BenchmarkPacked says what processor time compressing takes at each end, for each MiB of data, and what is left of them, beside what a frame takes
// without.
func BenchmarkPacked(b *testing.B) {
	for _, c := range []struct {
		name string
		data []byte
	}{{"text", text(1 << 20)}, {"mixed", mixed(1 << 20)}, {"noise", noise(1 << 20)}} {
		for _, size := range []int{8 << 10, 1 << 20} {
			parts := encodeChanges(changesOf(c.data[:size]))
			name := fmt.Sprintf("%s in frames of %d KiB", c.name, size>>10)
			var p packer
			packed := bytes.Clone(p.pack(parts))
			b.Run(name+"/client", func(b *testing.B) {
				perMiB(b, size, func() { p.pack(parts) })
				if packed != nil {
					b.ReportMetric(float64(len(packed))/float64(size), "left")
				}
			})
			if packed == nil {
				continue
			}
			var buf []byte
			b.Run(name+"/server", func(b *testing.B) {
				perMiB(b, size, func() {
					var err error
					if buf, err = unpack(packed, buf); err != nil {
						b.Fatal(err)
					}
				})
			})
		}
	}
	parts := encodeChanges(changesOf(noise(1 << 20)))
	b.Run("checksum of a frame", func(b *testing.B) { perMiB(b, 1<<20, func() { header(frameChanges, parts...) }) })
}

// perMiB measures the processor time of fn, which does something with size bytes.
func perMiB(b *testing.B, size int, fn func()) {
	b.SetBytes(int64(size))
	before := cpuTime(b)
	for b.Loop() {
		fn()
	}
	took := cpuTime(b) - before
	b.ReportMetric(took.Seconds()*1000/float64(b.N)/(float64(size)/(1<<20)), "cpu-ms/MiB")
}

// cpuTime is what this process has used of processors.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
