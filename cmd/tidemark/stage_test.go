package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/itchyny/gojq"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"tidemark/agent/taps"
	"tidemark/app/postgres"
	"tidemark/mount"
)

// doServer starts and ends servers.
func doServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: server start|stop|kill|freeze|thaw [DIR] [FLAG...]")
	}
	dir, flags := ts.MkAbs("d"), args[1:]
	if len(flags) > 0 && !strings.HasPrefix(flags[0], "-") {
		dir, flags = ts.MkAbs(flags[0]), flags[1:]
	}
	s := stageOf(ts)
	switch args[0] {
	case "start":
		cmd, err := startServer(dir, flags...)
		ts.Check(err)
		s.servers[dir] = cmd
		ts.Setenv("TIDEMARK_SOCKET", filepath.Join(dir, socketName))
	case "stop", "kill":
		sig := map[string]syscall.Signal{"stop": syscall.SIGTERM, "kill": syscall.SIGKILL}[args[0]]
		ts.Check(s.endServer(dir, sig))
	case "freeze", "thaw":
		sig := map[string]syscall.Signal{"freeze": syscall.SIGSTOP, "thaw": syscall.SIGCONT}[args[0]]
		ts.Check(s.servers[dir].Process.Signal(sig))
	default:
		ts.Fatalf("server cannot %s", args[0])
	}
}

// startServer starts a server and waits until it is ready.
func startServer(dir string, flags ...string) (*exec.Cmd, error) {
	log, err := os.OpenFile(dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command("tidemark", append([]string{"server", "--data", dir, "--cache", "64MiB"}, flags...)...)
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "ready ") {
		cmd.Wait()
		said, _ := os.ReadFile(dir + ".log")
		return nil, fmt.Errorf("the server did not come up: %q %v: %s", line, err, said)
	}
	return cmd, nil
}

func (s *stage) endServer(dir string, sig syscall.Signal) error {
	cmd := s.servers[dir]
	if cmd == nil {
		return fmt.Errorf("no server runs on %s", dir)
	}
	delete(s.servers, dir)
	if err := cmd.Process.Signal(sig); err != nil {
		return err
	}
	err := cmd.Wait()
	if sig == syscall.SIGKILL {
		return nil
	}
	return err
}

// strike takes away what the scenario left, so that a failed one leaves the
// host as it was. Disks go before servers: without its server, a disk waits for
// ever, and so does whoever unmounts it.
func (s *stage) strike() {
	if s.postgres != nil {
		s.postgres.Process.Signal(syscall.SIGQUIT)
		s.postgres.Wait()
	}
	for _, pid := range s.postmasters() {
		syscall.Kill(pid, syscall.SIGQUIT)
	}
	for range 100 {
		if len(s.postmasters()) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, pid := range s.agents() { // before what they would attach again
		syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, at := range s.attachments() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if err := at.Detach(ctx, true); err != nil {
			at.Cleanup(true)
		}
		cancel()
	}
	for _, dir := range s.mounts() {
		syscall.Unmount(dir, syscall.MNT_DETACH)
	}
	for dir := range s.servers {
		s.endServer(dir, syscall.SIGKILL)
	}
	s.endMachine()
	for _, x := range s.taps() {
		syscall.Kill(x.PID(), syscall.SIGKILL)
	}
}

// postmasters are the processes of databases that run on files of the scenario.
func (s *stage) postmasters() (pids []int) {
	files, _ := filepath.Glob(filepath.Join(s.dir, "*", "clones", "*", "*", "data", "postmaster.pid"))
	for _, f := range files {
		if in, err := postgres.Find(filepath.Dir(f)); err == nil {
			pids = append(pids, in.PID)
		}
	}
	return pids
}

// agents are the agents of other hosts that the scenario has started, which note their ids in *.pid and live in its directory.
func (s *stage) agents() (pids []int) {
	files, _ := filepath.Glob(filepath.Join(s.dir, "*.pid"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			continue
		}
		if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && dir == s.dir {
			pids = append(pids, pid)
		}
	}
	return pids
}

// mounts are the file systems mounted below the scenario's directory, the deepest first.
func (s *stage) mounts() (dirs []string) {
	text, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], s.dir+"/") {
			dirs = append([]string{f[1]}, dirs...)
		}
	}
	return dirs
}

func (s *stage) attachments() (list []*mount.Attachment) {
	dirs, _ := filepath.Glob(filepath.Join(s.dir, "*", "run", "attached"))
	for _, d := range dirs {
		found, _ := mount.List(d)
		list = append(list, found...)
	}
	return list
}

// taps are the taps that run.
func (s *stage) taps() (list []*taps.Tap) {
	dirs, _ := filepath.Glob(filepath.Join(s.dir, "*", "taps", "*"))
	for _, d := range dirs {
		if x, err := taps.Find(d); err == nil && x.Alive() {
			list = append(list, x)
		}
	}
	return list
}

// loops are the loop devices backed by files below the scenario's directory.
func (s *stage) loops() (list []string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(text), s.dir+"/") {
			list = append(list, filepath.Dir(filepath.Dir(f)))
		}
	}
	return list
}

// leftovers names everything that a scenario still holds of its host, servers and production left out.
func (s *stage) leftovers() (list []string) {
	for _, m := range s.mounts() {
		list = append(list, "mount "+m)
	}
	for _, a := range s.attachments() {
		list = append(list, "attachment "+a.Name())
	}
	for _, l := range s.loops() {
		list = append(list, "loop device "+l)
	}
	for _, x := range s.taps() {
		list = append(list, "tap of "+x.Config().Primaries[0])
	}
	for _, p := range s.postmasters() {
		list = append(list, "database process "+strconv.Itoa(p))
	}
	for _, pattern := range []string{"clones/*", "staging/*", "devices/*", "taps/*"} {
		dirs, _ := filepath.Glob(filepath.Join(s.dir, "*", pattern))
		for _, d := range dirs {
			list = append(list, "directory "+d)
		}
	}
	return list
}

// doClean waits a moment: the kernel gives a loop device back when its last user is gone.
func doClean(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: clean")
	}
	var left []string
	for range 50 {
		if left = stageOf(ts).leftovers(); len(left) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	ts.Fatalf("left behind: %s", strings.Join(left, ", "))
}

// postgresBin is the directory of PostgreSQL's programs, or empty.
func postgresBin() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(found[len(found)-1])
}

// doPostgres starts and stops production.
func doPostgres(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: postgres start|stop")
	}
	s := stageOf(ts)
	if args[0] == "stop" {
		ts.Check(s.postgres.Process.Signal(syscall.SIGINT))
		ts.Check(s.postgres.Wait())
		s.postgres = nil
		return
	}
	home := ts.MkAbs("prod")
	if s.port == 0 {
		var err error
		s.port, err = freePort()
		ts.Check(err)
	}
	ts.Check(s.startPostgres(home, s.port))
	ts.Setenv("PG", fmt.Sprintf("postgres://postgres@/postgres?host=%s&port=%d", home, s.port))
	ts.Setenv("PROD", fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", home, s.port))
}

func (s *stage) startPostgres(home string, port int) error {
	u, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	as := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	data := filepath.Join(home, "data")
	if _, err := os.Stat(data); err != nil {
		if err := os.MkdirAll(home, 0o700); err != nil {
			return err
		}
		if err := os.Chown(home, uid, gid); err != nil {
			return err
		}
		initdb := exec.Command(filepath.Join(postgresBin(), "initdb"), "-N", "-D", data, "-A", "trust", "-U", "postgres")
		initdb.SysProcAttr, initdb.Dir = as, home
		if out, err := initdb.CombinedOutput(); err != nil {
			return fmt.Errorf("initdb: %w: %s", err, out)
		}
	}
	log, err := os.OpenFile(home+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.postgres = exec.Command(filepath.Join(postgresBin(), "postgres"), "-D", data, "-k", home, "-p", strconv.Itoa(port), "-c", "listen_addresses=", "-c", "shared_buffers=16MB")
	s.postgres.SysProcAttr, s.postgres.Dir, s.postgres.Stdout, s.postgres.Stderr = as, home, log, log
	if err := s.postgres.Start(); err != nil {
		return err
	}
	for range 300 {
		ready := exec.Command(filepath.Join(postgresBin(), "pg_isready"), "-q", "-h", home, "-p", strconv.Itoa(port))
		if err = ready.Run(); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("production does not answer: %w", err)
}

// freePort is a TCP port that nobody has now; databases of scenarios that run side by side must differ in it.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// jq applies an expression of jq to what the last command printed, and returns what it makes of it, as texts and as JSON of other values, and whether
// the last of that is neither false nor null. It is done here: a process for each would take more of the processor than the command that is looked at.
func jq(ts *testscript.TestScript, expr string) (made string, holds bool) {
	q, err := gojq.Parse(expr)
	if err != nil {
		ts.Fatalf("%s: %v", expr, err)
	}
	var lines []string
	printed := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	for {
		var v any
		if err := printed.Decode(&v); err != nil {
			return strings.Join(lines, "\n"), holds && errors.Is(err, io.EOF)
		}
		values := q.Run(v)
		for x, ok := values.Next(); ok; x, ok = values.Next() {
			text, is := x.(string)
			if err, failed := x.(error); failed {
				return err.Error(), false
			} else if !is {
				data, err := gojq.Marshal(x)
				ts.Check(err)
				text = string(data)
			}
			lines, holds = append(lines, text), x != nil && x != false
		}
	}
}

func doJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: json EXPR")
	}
	out, holds := jq(ts, args[0])
	if holds == neg {
		ts.Fatalf("%s: %s, of %s", args[0], out, ts.ReadFile("stdout"))
	}
}

func doSet(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: set VAR EXPR")
	}
	out, holds := jq(ts, args[1])
	if !holds {
		ts.Fatalf("%s: %s, of %s", args[1], out, ts.ReadFile("stdout"))
	}
	ts.Setenv(args[0], out)
}

// holdsWithin is how long it may take until something holds. What nobody waits for is done by threads that rest, and that give way to
// all others: on a machine whose processors are full for long, as by other tests, a fold of some 100 MiB takes minutes.
const holdsWithin = 10 * time.Minute

// doUntil runs a command until what it prints satisfies an expression.
func doUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until EXPR COMMAND")
	}
	begun := time.Now()
	for {
		ts.Check(ts.Exec(args[1], args[2:]...))
		out, holds := jq(ts, args[0])
		if holds {
			return
		}
		waited := time.Since(begun)
		if waited > holdsWithin {
			ts.Fatalf("%s never holds: %s, of %s", args[0], out, ts.ReadFile("stdout"))
		}
		time.Sleep(min(max(waited/16, 50*time.Millisecond), 250*time.Millisecond)) // not more often: to ask keeps the machine busy, too
	}
}

// refused runs a command that has to end with an exit code and one line on stderr alone.
func refused(ts *testscript.TestScript, code int, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: fails|misused COMMAND")
	}
	err := ts.Exec(args[0], args[1:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		ts.Fatalf("exit code %d is due, not %v", code, err)
	}
	if said := ts.ReadFile("stdout"); said != "" {
		ts.Fatalf("a refusal prints nothing on stdout, but this did: %q", said)
	}
	said := ts.ReadFile("stderr")
	if !strings.HasPrefix(said, "tidemark: ") || strings.Count(said, "\n") != 1 || strings.Contains(said, "panic") || len(said) > 500 {
		ts.Fatalf("a refusal is one line, but this is: %q", said)
	}
}

// doDeaf opens a port that takes connections and says nothing: what waits for it waits until it is cut.
func doDeaf(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	go func() {
		var held []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			held = append(held, c)
		}
		for _, c := range held {
			c.Close()
		}
	}()
	ts.Setenv("DEAF", strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

// receiver takes messages.
type receiver struct {
	*httptest.Server
	status atomic.Int64
	mu     sync.Mutex // held while a message is kept
}

// doReceiver starts a receiver, or has it answer otherwise.
func doReceiver(ts *testscript.TestScript, neg bool, args []string) {
	status := int64(http.StatusOK)
	if len(args) > 0 {
		var err error
		status, err = strconv.ParseInt(args[0], 10, 16)
		ts.Check(err)
	}
	s := stageOf(ts)
	if s.receiver != nil {
		s.receiver.status.Store(status)
		return
	}
	r := &receiver{}
	r.status.Store(status)
	kept := ts.MkAbs("received")
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		body, err := io.ReadAll(req.Body)
		if code := int(r.status.Load()); err != nil || code >= 300 {
			http.Error(w, "not now", code)
			return
		}
		if err := keepMessage(kept, req, body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "thanks")
	}))
	ts.Defer(r.Close)
	s.receiver = r
	ts.Setenv("HOOK", r.URL)
}

// keepMessage adds a message to a file.
func keepMessage(path string, r *http.Request, body []byte) error {
	mac := hmac.New(sha256.New, []byte("0123456789abcdef"))
	fmt.Fprintf(mac, "%s.%s", r.Header.Get("X-Tidemark-Timestamp"), body)
	signed := r.Header.Get("X-Tidemark-Signature") == fmt.Sprintf("sha256=%x", mac.Sum(nil))
	line, err := json.Marshal(map[string]any{"path": r.URL.Path, "signed": signed, "delivery": r.Header.Get("X-Tidemark-Delivery"), "body": json.RawMessage(body)})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, "%s\n", line)
	return err
}

// doHolds looks for a text in what of a file is no hole.
func doHolds(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: holds FILE TEXT")
	}
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	found, text := false, []byte(args[1])
	for end := int64(0); !found; {
		begin, err := unix.Seek(int(f.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		ts.Check(err)
		end, err = unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		ts.Check(err)
		data := make([]byte, end-begin)
		_, err = f.ReadAt(data, begin)
		ts.Check(err)
		found = bytes.Contains(data, text)
	}
	if found == neg {
		ts.Fatalf("%s: it holds %q: %v", args[0], args[1], found)
	}
}
