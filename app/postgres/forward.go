package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"

	"tidemark"
)

// A cluster of another host is spoken to through its agent: pg_receivewal and we speak to a socket of this host, what is said there is carried to that host, and
// Forward says it to the cluster. It has connected by itself, with what that host has to connect with: nothing of that comes here.

const (
	// SocketName is the name that the socket of a forwarded cluster has in its directory ([Source].Forwarded): the one that libpq looks for.
	SocketName = ".s.PGSQL." + forwardedPort
	// forwardedPort is only a part of that name.
	forwardedPort = "5432"
	// forwardedUser is named to a forwarded cluster, which does not ask: its agent is who connects.
	forwardedUser = "tidemark"

	// maxStartup is PostgreSQL's own limit for the first message, in bytes: MAX_STARTUP_PACKET_LENGTH.
	maxStartup = 10_000
	// startupTime is how long the first messages may take.
	startupTime = 30 * time.Second
	// forwardedAtOnce is how much is forwarded at once, in bytes.
	forwardedAtOnce = 64 << 10
	// maxRefusal bounds what is told of an error, in bytes.
	maxRefusal = 1000
)

// Forward is PostgreSQL's side of a connection: it connects to a cluster by src, and has the two speak with each other until one of them ends, or ctx does.
// Who is on conn may be anybody who may do with the cluster what src may. Of what he asks for when he begins, only physical replication and his
// application_name are passed on. He is told an error in one line, as PostgreSQL would, and Forward returns it. It closes conn.
func Forward(ctx context.Context, conn net.Conn, src Source) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	begin, err := greet(conn)
	if err != nil {
		return err
	}
	hc, err := begin.connect(ctx, src)
	if err != nil {
		return errors.Join(err, refuse(conn, err))
	}
	defer hc.Conn.Close()
	defer context.AfterFunc(ctx, func() { hc.Conn.Close() })()
	if err := admit(conn, hc); err != nil {
		return err
	}
	ends := make(chan error, 2)
	for _, way := range [][2]net.Conn{{conn, hc.Conn}, {hc.Conn, conn}} {
		go func() {
			_, err := io.CopyBuffer(struct{ io.Writer }{way[0]}, struct{ io.Reader }{way[1]}, make([]byte, forwardedAtOnce))
			ends <- err
		}()
	}
	err = <-ends // what one end has to say last is said in order; then nobody is left to hear more
	conn.Close()
	hc.Conn.Close()
	<-ends
	return err
}

// RefuseForward is [Forward] where there is nothing to connect to: who is on conn is told why, and conn is closed.
func RefuseForward(conn net.Conn, why error) error {
	defer conn.Close()
	if _, err := greet(conn); err != nil {
		return err
	}
	return refuse(conn, why)
}

// beginning is what of a first message is passed on.
type beginning struct {
	replication bool   // physical
	name        string // of the application
}

// The codes in the place of a version that ask for something else: src/include/libpq/pqcomm.h.
const (
	codeCancel = 1234<<16 | 5678
	codeSSL    = 1234<<16 | 5679
	codeGSS    = 1234<<16 | 5680
)

// greet reads the first messages, and nothing behind them. What cannot be is answered.
func greet(conn net.Conn) (b beginning, err error) {
	if err := conn.SetDeadline(time.Now().Add(startupTime)); err != nil {
		return b, err
	}
	for range 3 { // two of them may ask whether this is encrypted
		code, body, err := readStartup(conn)
		if err != nil {
			return b, err
		}
		switch code {
		case codeSSL, codeGSS:
			if _, err := conn.Write([]byte{'N'}); err != nil {
				return b, err
			}
		case codeCancel:
			return b, errors.New("nothing is cancelled: the end of a connection ends what it does")
		case pgproto3.ProtocolVersion30:
			if b, err = parseBeginning(body); err != nil {
				return b, errors.Join(err, refuse(conn, err))
			}
			return b, conn.SetDeadline(time.Time{})
		default:
			err := fmt.Errorf("version %d.%d of the protocol is not spoken here", code>>16, code&0xffff)
			return b, errors.Join(err, refuse(conn, err))
		}
	}
	return b, errors.New("a client only asks whether the connection is encrypted")
}

// readStartup reads a message as they are before a connection has begun: it has no type, and its body begins with a code.
func readStartup(r io.Reader) (code uint32, body []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < 8 || size > maxStartup {
		return 0, nil, fmt.Errorf("a first message of %d bytes", size)
	}
	body = make([]byte, size-4)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, err
	}
	return binary.BigEndian.Uint32(body), body, nil
}

// parseBeginning reads the message by which a connection begins.
func parseBeginning(body []byte) (b beginning, err error) {
	var m pgproto3.StartupMessage
	if err := m.Decode(body); err != nil {
		return b, fmt.Errorf("a first message cannot be read: %w", err)
	}
	switch v := strings.ToLower(m.Parameters["replication"]); v {
	case "", "0", "off", "no", "false":
	case "1", "on", "yes", "true":
		b.replication = true
	default:
		return b, fmt.Errorf("replication=%.20q is not forwarded", v)
	}
	b.name = m.Parameters["application_name"]
	return b, nil
}

// connect opens the connection of our own to the cluster.
func (b beginning) connect(ctx context.Context, src Source) (*pgconn.HijackedConn, error) {
	cfg, err := src.config()
	if err != nil {
		return nil, err
	}
	if b.replication {
		cfg.RuntimeParams["replication"] = "true"
	}
	if b.name != "" {
		cfg.RuntimeParams["application_name"] = b.name
	}
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return nil, connectError(cfg, err)
	}
	err = conn.SyncConn(ctx)
	if err == nil {
		var hc *pgconn.HijackedConn
		if hc, err = conn.Hijack(); err == nil {
			return hc, nil
		}
	}
	return nil, errors.Join(err, conn.Close(ctx))
}

// admit says that the connection has begun, and what the cluster has said of itself.
func admit(w io.Writer, hc *pgconn.HijackedConn) error {
	b := pgproto3.NewBackend(nil, w)
	b.Send(&pgproto3.AuthenticationOk{})
	for _, name := range slices.Sorted(maps.Keys(hc.ParameterStatuses)) {
		b.Send(&pgproto3.ParameterStatus{Name: name, Value: hc.ParameterStatuses[name]})
	}
	b.Send(&pgproto3.BackendKeyData{ProcessID: hc.PID, SecretKey: make([]byte, 4)}) // its key to cancel with stays here
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	return b.Flush()
}

// refuse tells an error as PostgreSQL would.
func refuse(w io.Writer, why error) error {
	r := &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "08006", Message: oneLine(why)}
	var told *tidemark.Error
	if errors.As(why, &told) {
		r.Message, r.Hint = told.Message, told.Hint
	}
	var pe *pgconn.PgError
	if errors.As(why, &pe) && len(pe.Code) == 5 {
		r.Code = pe.Code
	}
	r.Message, r.Hint = shortLine(r.Message), shortLine(r.Hint)
	b := pgproto3.NewBackend(nil, w)
	b.Send(r)
	return b.Flush()
}

// shortLine makes one line of a text, and not a long one.
func shortLine(text string) string {
	return fmt.Sprintf("%.*s", maxRefusal, strings.Join(strings.Fields(text), " "))
}

// forwarded reports whether the cluster is another host's, and spoken to at a socket of this one.
func (s Source) forwarded() bool { return s.Forwarded != "" }

// forwardedConfig is config of a cluster that is forwarded.
func (s Source) forwardedConfig() (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig("host=/ port=" + forwardedPort + " user=" + forwardedUser + " dbname=postgres sslmode=disable target_session_attrs=any connect_timeout=30")
	if err != nil {
		return nil, err
	}
	cfg.Password, cfg.Fallbacks = "", nil // of the environment
	cfg.RuntimeParams = map[string]string{"application_name": "tidemark"}
	cfg.DialFunc = func(context.Context, string, string) (net.Conn, error) {
		conn, err := dialIn(s.Forwarded)
		if err != nil {
			return nil, err
		}
		w := &wary{Conn: conn}
		w.ever.Store(mostEver)
		return w, nil
	}
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		f := pgproto3.NewFrontend(r, w)
		f.SetMaxBodyLen(mostAnswered)
		return f
	}
	return cfg, nil
}

// How much the other end may say: what we ask has short answers, and another host may keep talking, of which much is remembered for as long as a connection lasts.
const (
	mostAnswered = 1 << 20   // to what was said last, in bytes
	mostEver     = 256 << 20 // some days of looking at a slot; then a connection begins anew
)

var errTalks = errors.New("it says more than it was asked for")

// wary is a connection that hears no more than it should.
type wary struct {
	net.Conn
	now, ever atomic.Int64 // how many bytes may come yet
}

func (w *wary) Write(b []byte) (int, error) {
	w.now.Store(mostAnswered)
	return w.Conn.Write(b)
}

func (w *wary) Read(b []byte) (int, error) {
	if w.now.Load() <= 0 || w.ever.Load() <= 0 {
		return 0, errTalks
	}
	n, err := w.Conn.Read(b)
	w.now.Add(-int64(n))
	w.ever.Add(-int64(n))
	return n, err
}

// dialIn connects to the socket in a directory, whose path may be longer than that of a socket.
func dialIn(dir string) (net.Conn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return net.Dial("unix", descriptor(int(d.Fd()))+"/"+SocketName)
}

// descriptor is the name of an open file, for this process or, of one that it is handed, for another.
func descriptor(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// forwardedError is connectError of a cluster that is forwarded: what was told is whole.
func forwardedError(err error) error {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return &tidemark.Error{Kind: tidemark.Unavailable, Message: "the cluster cannot be reached: " + oneLine(rootCause(err)), Cause: err}
	}
	kind := tidemark.Unavailable
	if strings.HasPrefix(pe.Code, "28") {
		kind = tidemark.Denied
	}
	return &tidemark.Error{Kind: kind, Message: pe.Message, Hint: pe.Hint, Cause: err}
}

// toolSocketFD is the descriptor of a tool that the directory with the socket of a forwarded cluster is handed over as. The directory is no
// business of the tool's user, and its path leads through directories that are ours alone.
const toolSocketFD = 4

// forwardedTool is tool for a cluster that is forwarded: it is to be handed Forwarded, open, as toolSocketFD. Nobody else on this host has the user that it runs as.
func (s Source) forwardedTool(ctx context.Context, binDir, name string, args ...string) (*exec.Cmd, error) {
	st, err := os.Stat(filepath.Join(s.Forwarded, SocketName))
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Unavailable, "the cluster is not forwarded here now: %w", err)
	}
	args = append([]string{"-h", descriptor(toolSocketFD), "-p", forwardedPort, "-U", forwardedUser, "-w"}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(binDir, name), args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "PGAPPNAME=tidemark"}
	owner := st.Sys().(*syscall.Stat_t)
	id := strconv.Itoa(int(owner.Uid))
	return cmd, runAs(cmd, &user.User{Uid: id, Gid: id, Username: id})
}

// mostMemory is how much address space a tool has that hears another host, in bytes: it makes room for what that says it will send.
const mostMemory = 512 << 20

// bound keeps a tool that has begun within mostMemory.
func (s Source) bound(tool *os.Process) {
	if s.forwarded() {
		_ = unix.Prlimit(tool.Pid, unix.RLIMIT_AS, &unix.Rlimit{Cur: mostMemory, Max: mostMemory}, nil) // it may have ended
	}
}
