package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"tidemark"
)

// strangerUID is that of nobody on this host.
const strangerUID = 2_046_820_352 + 4711

// forwarding listens as the server of another host does, and forwards what comes to a cluster, or refuses it. It returns how the cluster is reached.
type forwarding struct {
	src Source

	mu    sync.Mutex
	why   error // that connections are refused for
	conns map[net.Conn]bool
	last  error // of a Forward
}

func newForwarding(t testing.TB, to Source) *forwarding {
	t.Helper()
	outer := tempDir(t)
	dir := filepath.Join(outer, "l")
	if err := errors.Join(os.Chmod(outer, 0o700), os.Mkdir(dir, 0o711)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(l.Addr().String(), 0o600), os.Chown(l.Addr().String(), strangerUID, strangerUID)); err != nil {
		t.Fatal(err)
	}
	f := &forwarding{src: Source{Forwarded: dir}, conns: map[net.Conn]bool{}}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			why := f.why
			f.conns[conn] = true
			f.mu.Unlock()
			all.Go(func() {
				if why != nil {
					RefuseForward(conn, why)
					return
				}
				err := Forward(ctx, conn, to)
				f.mu.Lock()
				f.last = err
				f.mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		all.Wait()
	})
	return f
}

// cut ends all connections, and refuses those that come; nil: no more.
func (f *forwarding) cut(why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		c.Close()
	}
	clear(f.conns)
	f.why = why
}

// The log of a cluster is received, and its slot is made, watched and dropped, over connections that are forwarded to it; nothing is looked up in the
// directories that it names, and whoever receives is nobody else on this host.
func TestReceiveForwarded(t *testing.T) {
	c := newCluster(t)
	f := newForwarding(t, c.src)
	base := tempDir(t)
	staging, wal := filepath.Join(base, "staging"), filepath.Join(base, "closed", "wal")
	if err := errors.Join(os.Mkdir(staging, 0o755), os.Mkdir(filepath.Dir(wal), 0o700)); err != nil {
		t.Fatal(err)
	}
	report, err := Check(context.Background(), f.src, CheckOptions{SetSlotLimit: 1 << 30})
	if err != nil || len(report.Problems) > 0 || len(report.Warnings) > 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	if s := c.query("SHOW max_slot_wal_keep_size"); s != "1GB" {
		t.Errorf("the limit is %s", s)
	}
	r, stop := startReceiver(t, ReceiverConfig{Source: f.src, ID: "far", WALDir: wal})
	c.exec("CREATE TABLE t (x int)")
	mustCapture(t, c.src, staging, CaptureOptions{})
	c.exec("INSERT INTO t VALUES (1); SELECT pg_switch_wal(); INSERT INTO t VALUES (2)")
	force(t, r)
	receiverProcess(t)

	// While it is cut, the server keeps the log; then it goes on.
	f.cut(tidemark.Errorf(tidemark.Unavailable, "host far is not connected").WithHint("wait"))
	c.exec("INSERT INTO t VALUES (3); SELECT pg_switch_wal(); CHECKPOINT; INSERT INTO t VALUES (4)")
	eventually(t, "why it is not running is told", func() bool {
		s, _ := r.Status()
		return !s.Running && s.Error == "host far is not connected: wait"
	})
	known, err := r.Status()
	if err != nil {
		t.Fatal(err)
	}

	// How far it came is known to the next receiver, though the cluster is away.
	eventually(t, "it is noted", func() bool {
		b, err := os.ReadFile(filepath.Join(wal, receivedName))
		return err == nil && strings.Contains(string(b), known.Flushed.String())
	})
	stop()
	r, err = NewReceiver(ReceiverConfig{Source: f.src, ID: "far", WALDir: wal})
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := r.Run(gone); err != nil {
		t.Fatal(err)
	}
	if s, err := r.Status(); err != nil || !s.Covered.Equal(known.Covered) || s.Flushed != known.Flushed || s.Oldest == 0 || s.Oldest > s.Flushed || s.Running {
		t.Errorf("of %+v is known %+v, %v", known, s, err)
	}
	f.cut(nil)
	r, stop = startReceiver(t, ReceiverConfig{Source: f.src, ID: "far", WALDir: wal})
	eventually(t, "it streams again", func() bool { s, _ := r.Status(); return s.Running && s.Error == "" })
	force(t, r)
	if s, err := r.Status(); err != nil || len(s.Gaps) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if n := c.query("SELECT count(*)::text FROM pg_stat_replication WHERE application_name = 'tidemark'"); n != "1" {
		t.Errorf("%s receivers", n)
	}

	in := bringUp(t, Target{Name: "far", DataDir: filepath.Join(copyTo(t, staging), "data"), WALDir: copyTo(t, wal), Stop: Stop{Latest: true}})
	if n := queryOn(t, in.Source(), "SELECT count(*)::text FROM t"); n != "4" {
		t.Errorf("%s rows", n)
	}

	// What is lost because somebody dropped the slot meanwhile is a gap.
	stop()
	if err := DropSlot(context.Background(), f.src, "far"); err != nil {
		t.Fatal(err)
	}
	if n := c.query("SELECT count(*)::text FROM pg_replication_slots"); n != "0" {
		t.Errorf("%s slots are left", n)
	}
	for range 6 {
		c.exec("SELECT pg_logical_emit_message(true, 'x', repeat('y', 100000)); SELECT pg_switch_wal(); CHECKPOINT")
	}
	r, stop = startReceiver(t, ReceiverConfig{Source: f.src, ID: "far", WALDir: wal})
	force(t, r)
	if s, err := r.Status(); err != nil || len(s.Gaps) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	stop()
	c.stop()
	if _, err := f.src.Connect(context.Background()); tidemark.KindOf(err) != tidemark.Unavailable || !strings.HasPrefix(err.Error(), "no PostgreSQL answers at "+c.sock) || strings.Contains(err.Error(), "\n") {
		t.Errorf("a cluster that is down: %v", err)
	}
}

// A slot that has grown over its limit while the host was away is dropped when that is back, and the loss recorded.
func TestLimitForwarded(t *testing.T) {
	c := newCluster(t)
	f := newForwarding(t, c.src)
	gaps := make(chan Gap, 10)
	r, _ := startReceiver(t, ReceiverConfig{Source: f.src, ID: "cut", WALDir: filepath.Join(tempDir(t), "wal"), LimitBytes: 24 << 20, OnGap: func(g Gap) { gaps <- g }})
	reached := force(t, r)
	f.cut(errors.New("cut"))
	c.exec("CREATE TABLE fill (x text)")
	for range 8 {
		c.exec("INSERT INTO fill SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
	}
	c.exec("CHECKPOINT")
	f.cut(nil)
	select {
	case g := <-gaps:
		if g.From < reached || g.To <= g.From || !strings.Contains(g.Reason, "limit") {
			t.Errorf("%+v, behind %s", g, reached)
		}
	case <-time.After(time.Minute):
		t.Fatal("the limit is not held")
	}
	eventually(t, "it streams again", func() bool { s, _ := r.Status(); return s.Running && s.Error == "" })
	force(t, r)
	kept := c.query("SELECT (pg_current_wal_lsn() - min(restart_lsn) < 24 << 20)::text FROM pg_replication_slots")
	if kept != "true" {
		t.Error("the server keeps more than the limit")
	}
}

// receiverProcess holds that pg_receivewal runs as the stranger.
func receiverProcess(t *testing.T) {
	t.Helper()
	out, err := exec.Command("ps", "-o", "comm=", "-U", fmt.Sprint(strangerUID)).Output()
	if err != nil || !strings.Contains(string(out), "pg_receivewal") {
		t.Errorf("as %d there is: %s, %v", strangerUID, out, err)
	}
}

// A role without the right to list the log is told of what is certainly there.
func TestServerHas(t *testing.T) {
	c := newCluster(t)
	c.exec("CREATE ROLE weak LOGIN REPLICATION; SELECT pg_switch_wal(); CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT; SELECT pg_create_physical_replication_slot('tidemark_weak', true)")
	r, err := NewReceiver(ReceiverConfig{Source: c.src, ID: "weak", WALDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := c.src.Connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	from, _, err := r.slotBegins(context.Background(), conn)
	if err != nil {
		t.Fatal(err)
	}
	const size = 16 << 20
	has := func(seg uint64) bool {
		t.Helper()
		ok, err := r.serverHas(context.Background(), conn, segmentName(1, seg, size), size)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	first := uint64(from) / size
	if !has(first) || has(first+1000) {
		t.Errorf("of a superuser: %v, %v", has(first), has(first+1000))
	}
	if _, err := conn.Exec(context.Background(), "SET ROLE weak"); err != nil {
		t.Fatal(err)
	}
	if !has(first) || has(first-1) {
		t.Errorf("of a role without the right: %v, %v", has(first), has(first-1))
	}
}

// firstMessage is what a client says first.
func firstMessage(code uint32, parameters ...string) []byte {
	body := binary.BigEndian.AppendUint32(nil, code)
	for _, p := range parameters {
		body = append(append(body, p...), 0)
	}
	if code == pgproto3.ProtocolVersion30 {
		body = append(body, 0)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...)
}

// Of what a client asks for, nothing is passed on but replication and the name of the application; what cannot be is refused in one line.
func TestForwardPassesLittleOn(t *testing.T) {
	c := newCluster(t)
	f := newForwarding(t, c.src)
	cfg, err := f.src.config()
	if err != nil {
		t.Fatal(err)
	}
	cfg.User, cfg.Database = "nobody", "nowhere"
	cfg.RuntimeParams = map[string]string{"application_name": "it's me", "options": "-c work_mem=77MB", "work_mem": "78MB"}
	conn, err := pgconn.ConnectConfig(context.Background(), &cfg.Config)
	if err != nil {
		t.Fatal(err)
	}
	res := conn.ExecParams(context.Background(), "SELECT current_user, current_database(), current_setting('application_name'), current_setting('work_mem')", nil, nil, nil, nil).Read()
	if res.Err != nil || string(bytes.Join(res.Rows[0], []byte(" "))) != "postgres postgres it's me 4MB" {
		t.Errorf("%s, %v", res.Rows, res.Err)
	}
	if err := conn.Close(context.Background()); err != nil {
		t.Error(err)
	}
	cfg.RuntimeParams = map[string]string{"replication": "database"}
	if _, err := pgconn.ConnectConfig(context.Background(), &cfg.Config); err == nil || !strings.Contains(err.Error(), `replication="database" is not forwarded`) {
		t.Errorf("logical replication: %v", err)
	}
	cfg.RuntimeParams = map[string]string{"replication": "true"}
	conn, err = pgconn.ConnectConfig(context.Background(), &cfg.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	list, err := conn.Exec(context.Background(), "IDENTIFY_SYSTEM").ReadAll()
	if err != nil || len(list) != 1 || len(list[0].Rows) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := conn.Exec(context.Background(), "SELECT 1").ReadAll(); err == nil {
		t.Error("a connection for replication takes SQL")
	}
}

// talk says something to Forward, and returns all that it answers.
func talk(t testing.TB, say []byte) (answer []byte, err error) {
	t.Helper()
	near, far := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- Forward(context.Background(), far, Source{Conn: "host=/nowhere"}) }()
	go func() {
		near.SetDeadline(time.Now().Add(10 * time.Second))
		near.Write(say)
		if len(say) == 0 || say[0] != 0 {
			near.Close()
		}
	}()
	answer, _ = io.ReadAll(near)
	return answer, <-ended
}

// Who speaks something else, or more than he may, is refused, and nothing waits for him.
func TestForwardHostile(t *testing.T) {
	whole := firstMessage(pgproto3.ProtocolVersion30, "user", "x")
	for name, x := range map[string]struct {
		say           []byte
		answer, fails string
	}{
		"nothing there": {whole, "PostgreSQL", "nowhere"},
		"ssl":           {append(firstMessage(codeSSL), whole...), "PostgreSQL", "nowhere"},
		"ssl and gss":   {append(append(firstMessage(codeSSL), firstMessage(codeGSS)...), whole...), "PostgreSQL", "nowhere"},
		"only ssl":      {bytes.Repeat(firstMessage(codeSSL), 4), "NNN", "only asks"},
		"cancel":        {firstMessage(codeCancel, "12345678"), "", "nothing is cancelled"},
		"version":       {firstMessage(4<<16|7, "user", "x"), "version 4.7", "version 4.7"},
		"3.2":           {firstMessage(pgproto3.ProtocolVersion32, "user", "x", ""), "version 3.2", "version 3.2"},
		"huge":          {binary.BigEndian.AppendUint32(nil, 1<<31), "", "2147483648 bytes"},
		"tiny":          {binary.BigEndian.AppendUint32(nil, 7), "", "7 bytes"},
		"unended":       {firstMessage(pgproto3.ProtocolVersion30, "user")[:12], "", ""},
		"no pairs":      {firstMessage(pgproto3.ProtocolVersion30), "cannot be read", "cannot be read"},
		"http":          {[]byte("GET / HTTP/1.0\r\n\r\n"), "", "bytes"},
	} {
		if name == "unended" {
			x.say = append(binary.BigEndian.AppendUint32(nil, 500), x.say[4:]...)
			near, far := net.Pipe()
			go func() {
				near.Write(x.say)
				near.Close()
			}()
			if err := Forward(context.Background(), far, Source{}); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		answer, err := talk(t, x.say)
		if err == nil || !strings.Contains(err.Error(), x.fails) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Contains(answer, []byte(x.answer)) || x.answer == "" && len(answer) > 0 {
			t.Errorf("%s: the answer is %q", name, answer)
		}
	}
}

// FuzzForward holds that whatever is said first, it is refused, in a message that is one, or read as it was meant.
func FuzzForward(f *testing.F) {
	f.Add(firstMessage(pgproto3.ProtocolVersion30, "user", "x", "replication", "true"))
	f.Add(append(firstMessage(codeSSL), firstMessage(pgproto3.ProtocolVersion30, "user", "x", "replication", "database")...))
	f.Add(firstMessage(codeCancel))
	f.Add([]byte{0, 0, 39, 16, 0, 3, 0, 0})
	f.Fuzz(func(t *testing.T, said []byte) {
		near, far := net.Pipe()
		go func() {
			near.Write(said)
			time.AfterFunc(20*time.Millisecond, func() { near.Close() })
		}()
		answered := make(chan []byte)
		go func() {
			b, _ := io.ReadAll(near)
			answered <- b
		}()
		begin, err := greet(far)
		far.Close()
		answer := bytes.TrimLeft(<-answered, "N")
		if err == nil && len(answer) > 0 || len(begin.name) > maxStartup {
			t.Errorf("%+v, and the answer %q", begin, answer)
		}
		if len(answer) == 0 {
			return
		}
		m, ferr := pgproto3.NewFrontend(bytes.NewReader(answer), io.Discard).Receive()
		if _, ok := m.(*pgproto3.ErrorResponse); !ok || ferr != nil {
			t.Errorf("%v is answered by %q: %v", err, answer, ferr)
		}
	})
}

// What another host says in the place of a cluster takes no more memory of ours than our questions are worth.
func TestForwardedTalks(t *testing.T) {
	admitted := func(w io.Writer) {
		admit(w, &pgconn.HijackedConn{ParameterStatuses: map[string]string{"server_version": "15.1"}})
	}
	forever := func(w io.Writer, m pgproto3.BackendMessage) {
		one, err := m.Encode(nil)
		if err != nil {
			t.Error(err)
		}
		for many := bytes.Repeat(one, 100); err == nil; {
			_, err = w.Write(many)
		}
	}
	for name, talk := range map[string]func(conn net.Conn){
		"a large message": func(conn net.Conn) { conn.Write([]byte{'S', 0x3f, 0xff, 0xff, 0xff}) },
		"much to begin": func(conn net.Conn) {
			forever(conn, &pgproto3.ParameterStatus{Name: "x", Value: strings.Repeat("y", 100)})
		},
		"a large answer": func(conn net.Conn) {
			admitted(conn)
			io.ReadFull(conn, make([]byte, 5))
			conn.Write([]byte{'D', 0x3f, 0xff, 0xff, 0xff})
		},
		"much to an answer": func(conn net.Conn) {
			admitted(conn)
			forever(conn, &pgproto3.NoticeResponse{Message: strings.Repeat("y", 100)})
		},
	} {
		dir := tempDir(t)
		l, err := net.Listen("unix", filepath.Join(dir, SocketName))
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		all.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				all.Go(func() {
					defer conn.Close()
					if _, err := greet(conn); err == nil {
						conn.SetDeadline(time.Now().Add(20 * time.Second))
						talk(conn)
						io.Copy(io.Discard, conn)
					}
				})
			}
		})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		begun := time.Now()
		conn, err := Source{Forwarded: dir}.Connect(t.Context())
		if err == nil {
			_, err = conn.Exec(t.Context(), "SELECT 1")
			conn.Close(t.Context())
		}
		runtime.ReadMemStats(&after)
		if took := time.Since(begun); err == nil || took > 10*time.Second || after.TotalAlloc-before.TotalAlloc > 256<<20 {
			t.Errorf("%s: %v, after %v, with %d MiB", name, err, took, (after.TotalAlloc-before.TotalAlloc)>>20)
		}
		l.Close()
		all.Wait()
	}
	var c complaints
	for range 1000 {
		fmt.Fprintln(&c, strings.Repeat("notice", 100))
	}
	fmt.Fprintln(&c, "the last")
	if len(c) > keptComplaints || lastLine(string(c), nil) != "the last" {
		t.Errorf("of complaints %d bytes are kept: %q", len(c), lastLine(string(c), nil))
	}
}

// A time that cannot be told on is none.
func TestCheckClock(t *testing.T) {
	for year, good := range map[int]bool{-1: false, 1969: false, 1970: true, 2026: true, 9998: true, 9999: false, 294000: false} {
		if err := checkClock(time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC)); (err == nil) != good {
			t.Errorf("the year %d: %v", year, err)
		}
	}
}
