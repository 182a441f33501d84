package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"tidemark"
)

// Source says how a protected cluster is reached. It holds no secret and may be
// stored and shown.
type Source struct {
	// Conn is a libpq connection string: a postgres:// URL or key=value words.
	// It must not hold a password; see [ParseSource].
	Conn string `json:"conn"`
	// OSUser is whom connections over a unix socket and tools act as, where this
	// process is root. Empty means the owner of the server's socket.
	OSUser string `json:"osUser,omitempty"`
	// BinDir is where pg_receivewal, pg_controldata and postgres are. Empty
	// means the usual place of the server's version.
	BinDir string `json:"binDir,omitempty"`
	// Forwarded is a directory of this host with a socket, named [SocketName], by which a cluster of another host is reached that [Forward]
	// connects to there. The other fields, but for BinDir, say nothing then.
	Forwarded string `json:"forwarded,omitempty"`
}

var keyPassword = regexp.MustCompile(`(?i)(^|[\s?&])(password|sslpassword)\s*=`)

// ParseSource checks a connection string of this host. It refuses one with a password, and
// never repeats that password in its error.
func ParseSource(conn string) (Source, error) {
	s, err := ParseRemote(conn)
	if err != nil {
		return s, err
	}
	if _, err := s.config(); err != nil {
		return Source{}, err
	}
	return s, nil
}

// ParseRemote is ParseSource of a connection string of another host: what it means there, the agent there finds out. Sockets, certificates and services
// that it names are not looked for here.
func ParseRemote(conn string) (Source, error) {
	refuse := tidemark.Errorf(tidemark.Invalid, "the connection string holds a password").
		WithHint("put it into ~/.pgpass, or give it in PGPASSWORD or PGPASSFILE, and leave it out here")
	if keyPassword.MatchString(conn) {
		return Source{}, refuse
	}
	if strings.HasPrefix(conn, "postgres://") || strings.HasPrefix(conn, "postgresql://") {
		u, err := url.Parse(conn)
		if err != nil {
			return Source{}, tidemark.Errorf(tidemark.Invalid, "the connection string is not a URL").WithHint("write postgres://user@host:port/database, with special characters percent-encoded")
		}
		if _, has := u.User.Password(); has {
			return Source{}, refuse
		}
		for k := range u.Query() { // percent-encoded keys too
			if k = strings.ToLower(k); k == "password" || k == "sslpassword" {
				return Source{}, refuse
			}
		}
	}
	return Source{Conn: conn}, nil
}

// config reads the connection string and completes it: the socket directory of
// the distribution, the OS user for peer authentication, and his name as the role.
func (s Source) config() (*pgx.ConnConfig, error) {
	if s.forwarded() {
		return s.forwardedConfig()
	}
	cfg, err := pgx.ParseConfig(s.Conn)
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Invalid, "the connection string cannot be read: %s", oneLine(errors.Unwrap(err))).
			WithHint("write postgres:///, postgres://user@host:port/database or key=value words")
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	cfg.RuntimeParams["application_name"] = "tidemark"
	if !strings.HasPrefix(cfg.Host, "/") {
		return cfg, nil
	}
	u, err := s.socketUser(cfg)
	if err != nil {
		return nil, err
	}
	if u != nil {
		if !s.namesRole() {
			cfg.User = u.Username
			if cfg.Database == "" || !s.namesDatabase() {
				cfg.Database = "postgres"
			}
		}
		cfg.DialFunc = peerDialer(u)
	}
	return cfg, nil
}

var (
	keyUser = regexp.MustCompile(`(?i)(^|[\s?&])user\s*=`)
	keyDB   = regexp.MustCompile(`(?i)(^|[\s?&])(dbname|database)\s*=`)
)

func (s Source) namesRole() bool {
	if u, err := url.Parse(s.Conn); err == nil && u.User != nil && u.User.Username() != "" {
		return true
	}
	return keyUser.MatchString(s.Conn) || os.Getenv("PGUSER") != ""
}

func (s Source) namesDatabase() bool {
	if u, err := url.Parse(s.Conn); err == nil && strings.HasPrefix(u.Scheme, "postgres") && strings.Trim(u.Path, "/") != "" {
		return true
	}
	return keyDB.MatchString(s.Conn) || os.Getenv("PGDATABASE") != ""
}

// socketUser is whom to be at the server's unix socket: nil for ourselves.
func (s Source) socketUser(cfg *pgx.ConnConfig) (*user.User, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	if s.OSUser != "" {
		u, err := user.Lookup(s.OSUser)
		if err != nil {
			return nil, tidemark.Errorf(tidemark.Invalid, "there is no user %q on this host", s.OSUser)
		}
		return u, nil
	}
	path := filepath.Join(cfg.Host, fmt.Sprintf(".s.PGSQL.%d", cfg.Port))
	st, err := os.Stat(path)
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Unavailable, "no PostgreSQL answers at %s", path).WithHint("is the server running, and is it this port and socket directory?")
	}
	return user.LookupId(strconv.Itoa(int(st.Sys().(*syscall.Stat_t).Uid)))
}

// peerDialer dials unix sockets as another user. The kernel notes the caller at
// connect, and user ids belong to threads: so one thread becomes that user for
// the length of one connect, and then ends.
func peerDialer(u *user.User) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			return nil, err
		}
		type result struct {
			fd  int
			err error
		}
		done := make(chan result, 1)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
				done <- result{-1, fmt.Errorf("act as %s: %w", u.Username, e)}
				return
			}
			fd, err := connectUnix(addr)
			done <- result{fd, err}
		}()
		r := <-done // a connect to a local socket does not wait for the network
		if r.err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Addr: &net.UnixAddr{Name: addr, Net: "unix"}, Err: r.err}
		}
		f := os.NewFile(uintptr(r.fd), addr)
		defer f.Close()
		return net.FileConn(f)
	}
}

func connectUnix(addr string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: addr}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Connect opens a connection to the cluster. Errors are one line that says what
// to do; they never hold a password.
func (s Source) Connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := s.config()
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	switch {
	case err != nil && s.forwarded() && !errors.Is(err, context.Canceled):
		return nil, forwardedError(err)
	case err != nil:
		return nil, connectError(cfg, err)
	}
	return conn, nil
}

func connectError(cfg *pgx.ConnConfig, err error) error {
	where := fmt.Sprintf("PostgreSQL at %s port %d", cfg.Host, cfg.Port)
	var pe *pgconn.PgError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &pe) && strings.HasPrefix(pe.Code, "28"):
		return &tidemark.Error{Kind: tidemark.Denied, Message: fmt.Sprintf("%s refuses user %q: %s", where, cfg.User, pe.Message),
			Hint: "check pg_hba.conf, the user name, and ~/.pgpass or PGPASSWORD", Cause: err}
	case errors.As(err, &pe):
		return &tidemark.Error{Kind: tidemark.Unavailable, Message: where + ": " + pe.Message, Cause: err}
	}
	return &tidemark.Error{Kind: tidemark.Unavailable, Message: where + " does not answer: " + oneLine(rootCause(err)), Hint: "is it running, and is it this host and port?", Cause: err}
}

func rootCause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

func oneLine(err error) string {
	if err == nil {
		return "unknown error"
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

// tool prepares a PostgreSQL program that connects to s, as the right user.
func (s Source) tool(ctx context.Context, binDir, name string, args ...string) (*exec.Cmd, error) {
	if s.forwarded() {
		return s.forwardedTool(ctx, binDir, name, args...)
	}
	cfg, err := s.config()
	if err != nil {
		return nil, err
	}
	args = append([]string{"-h", cfg.Host, "-p", strconv.Itoa(int(cfg.Port)), "-U", cfg.User, "-w"}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(binDir, name), args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "PGAPPNAME=tidemark"}
	if cfg.Password != "" {
		cmd.Env = append(cmd.Env, "PGPASSWORD="+cfg.Password)
	}
	for _, k := range []string{"PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "HOME"} {
		if v, ok := os.LookupEnv(k); ok {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	if strings.HasPrefix(cfg.Host, "/") {
		u, err := s.socketUser(cfg)
		if err != nil {
			return nil, err
		}
		if u != nil {
			return cmd, runAs(cmd, u)
		}
	}
	return cmd, nil
}

// runAs makes cmd run as u.
func runAs(cmd *exec.Cmd, u *user.User) error {
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("user %s: %w", u.Username, err)
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.Dir = "/"
	if int(uid) == os.Geteuid() {
		return nil
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), NoSetGroups: os.Geteuid() != 0}
	return nil
}

// newerTried is how many major versions after a server's are tried, where only pg_receivewal is needed.
const newerTried = 10

// receiverDir is where there is a pg_receivewal for a server of a major version: of its own, or of a newer one.
func (s Source) receiverDir(major int) (string, error) {
	dir, err := binDirFor(s.BinDir, major)
	for newer := major + 1; err != nil && s.BinDir == "" && newer <= major+newerTried; newer++ {
		if d, e := binDirFor("", newer); e == nil {
			return d, nil
		}
	}
	return dir, err
}

// binDirFor is where the programs of a major version are.
func binDirFor(given string, major int) (string, error) {
	candidates := []string{given}
	if given == "" {
		candidates = []string{
			fmt.Sprintf("/usr/lib/postgresql/%d/bin", major), fmt.Sprintf("/usr/pgsql-%d/bin", major),
			fmt.Sprintf("/usr/local/pgsql-%d/bin", major), "/usr/local/pgsql/bin", "/usr/local/bin", "/usr/bin",
		}
	}
	for _, dir := range candidates {
		if _, err := os.Stat(filepath.Join(dir, "postgres")); err == nil {
			return dir, nil
		}
	}
	return "", tidemark.Errorf(tidemark.Unavailable, "no programs of PostgreSQL %d on this host", major).
		WithHint(fmt.Sprintf("install the server package of version %d, or say where its bin directory is", major))
}
