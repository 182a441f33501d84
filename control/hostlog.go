package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"tidemark"
	"tidemark/agent"
	"tidemark/app/postgres"
	"tidemark/catalog"
	"tidemark/export/nbd"
)

// The log of a cluster of another host is received by our own agent, as that of one of this host. What it connects to is a socket of ours, and each connection
// that is made there is one that the agent of that host makes to the cluster: see agent.ForwardPostgres.

// hasLog reports whether the log of an application is received. That of a cluster of another host is, unless it was protected by a release that did not,
// or where there was nothing to receive it with: then it has no disk for it.
func (a app) hasLog() bool {
	if a.Type != tidemark.TypePostgres || a.Role != "" {
		return false
	}
	if a.t == nil { // it is still to be protected
		return true
	}
	_, err := a.t.Disk(logDisk)
	return err == nil
}

// errNoLog says that a database has no log between its captures.
func (a app) errNoLog() *tidemark.Error {
	return tidemark.Errorf(tidemark.Invalid, "%s is captured from host %s, and its log between captures is not received", a.name, a.Agent).
		WithHint("name one of its points: `tidemark points " + a.name + "`; to have its log from now on, protect the cluster anew, under another name")
}

// Users that receive a log are nobody else: who has the same user as a process has its files, and these include a socket that is superuser of production.
// The numbers lie where no user of a host is; systemd's documentation (UIDS-GIDS) calls them unused, and what maps directory services ends before.
const (
	firstReceiver = 2_046_820_352
	receiverRange = 1 << 24
)

// receiverUser is the user by whom a log is received, by the ID of its timeline.
func receiverUser(id string) int {
	return firstReceiver + int(crc32.ChecksumIEEE([]byte(id))%receiverRange)
}

// forwarding is a cluster of another host that can be reached at a socket of ours.
type forwarding struct {
	src    postgres.Source // by which it is reached here
	host   string
	there  postgres.Source // by which it is reached there
	count  *agent.Carried
	dir    *os.File // of the socket
	l      net.Listener
	cancel context.CancelFunc
	all    sync.WaitGroup
}

// dialPatience is how long an agent may take to connect to what its cluster is forwarded on.
const dialPatience = 20 * time.Second

// forward has a cluster of another host reached at a socket, which the user of an ID can open, and we. Nobody else gets there: the directory run is ours
// alone. close must be called.
func (c *Control) forward(host, source, id string, count *agent.Carried) (*forwarding, error) {
	there, err := postgres.ParseRemote(source)
	if err != nil {
		return nil, err
	}
	dir := c.path("run", "log-"+id)
	if err := os.Chmod(c.path("run"), 0o700); err != nil { // as it was made, and must be
		return nil, err
	}
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // whatever the umask is
		return nil, err
	}
	f := &forwarding{src: postgres.Source{Forwarded: dir}, host: host, there: there, count: count}
	if f.dir, err = os.Open(dir); err != nil {
		return nil, err
	}
	// By its descriptor, for the path of a socket may be no longer than 107 bytes.
	socket := fmt.Sprintf("/proc/self/fd/%d/%s", f.dir.Fd(), postgres.SocketName)
	if f.l, err = nbd.Listen("unix:" + socket); err != nil {
		return nil, errors.Join(err, f.dir.Close())
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(socket, receiverUser(id), receiverUser(id)); err != nil {
			return nil, errors.Join(err, f.l.Close(), f.dir.Close())
		}
	}
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(context.Background())
	f.all.Go(func() { c.acceptForwarded(ctx, f) })
	return f, nil
}

// close ends all connections.
func (f *forwarding) close() {
	f.l.Close() // which removes the socket
	f.cancel()
	f.all.Wait()
	f.dir.Close()
	os.Remove(f.src.Forwarded) // it is empty, unless we may not
}

func (c *Control) acceptForwarded(ctx context.Context, f *forwarding) {
	for {
		conn, err := f.l.Accept()
		switch {
		case err == nil:
			f.all.Go(func() { c.carryForwarded(ctx, f, conn) })
		case errors.Is(err, net.ErrClosed):
			return
		default:
			c.log.Warn("a connection to a cluster of a host was not accepted", "host", f.host, "error", err)
			rest(ctx, 100*time.Millisecond) // descriptors may be short
		}
	}
}

// carryForwarded connects who has come to our socket to a cluster of another host, or tells him why that cannot be.
func (c *Control) carryForwarded(ctx context.Context, f *forwarding, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	to, err := c.dialForwarded(ctx, cancel, f)
	if err != nil {
		if err := postgres.RefuseForward(conn, Explain(err)); err != nil {
			c.log.Debug("nobody was told that a cluster is not reached", "host", f.host, "error", err)
		}
		return
	}
	handOn(to.Conn, conn)
	if err := to.Close(); err != nil {
		c.log.Debug("a connection to a cluster has ended", "host", f.host, "error", err)
	}
}

// dialForwarded connects to a cluster of another host. A host that does not answer is not waited for: giveUp ends ctx then.
func (c *Control) dialForwarded(ctx context.Context, giveUp func(), f *forwarding) (*agent.Forwarded, error) {
	x, err := c.hostAgent(ctx, f.host)
	if err != nil {
		return nil, err
	}
	patience := time.AfterFunc(dialPatience, giveUp)
	to, err := x.ForwardPostgres(ctx, f.there, f.count)
	if patience.Stop() {
		return to, err
	}
	if err == nil {
		_ = to.Close()
	}
	return nil, tidemark.Errorf(tidemark.Unavailable, "the agent of host %s does not answer", f.host)
}

// logOf says how the log of an application is received, and what is to be closed when it is not any more.
func (c *Control) logOf(a app) (log agent.Log, end func(), err error) {
	log = agent.Log{ID: a.t.ID(), Dir: c.logDir(a), LimitBytes: slotLimit(a.Options)}
	if !a.sent() {
		log.Source.Conn = a.Source // it was read when it was protected; now its database may be away, for which the receiver waits
		return log, func() {}, nil
	}
	f, err := c.forward(a.Agent, a.Source, a.t.ID(), c.captured.log(a.name))
	if err != nil {
		return log, nil, err
	}
	log.Source = f.src
	return log, f.close, nil
}

// receiveSent begins to receive the log of a cluster of another host, if it has one. A capture goes on without.
func (c *Control) receiveSent(ctx context.Context, a app) {
	if !a.hasLog() {
		return
	}
	// Without its disk below it, the log would go into a plain directory, and no clone would see it.
	_, err := c.staged(ctx, a, logDisk)
	if err == nil {
		err = c.receive(a)
	}
	if err != nil {
		c.event("error", a.name, "the log of %s is not received: %v", a.name, err)
	}
}

// howToReceive finds out whether the log of a cluster of another host can be received, and has the cluster bound what it keeps for us. What stands in the way
// of that there is an error; what should be known, as why there are captures only, is in notes.
func (c *Control) howToReceive(ctx context.Context, spec tidemark.ProtectSpec) (log bool, notes []string, err error) {
	f, err := c.forward(spec.Host, spec.Source, rand.Text(), &agent.Carried{})
	if err != nil {
		return false, nil, err
	}
	defer f.close()
	ctx, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	older, err := c.forwardsNot(ctx, f)
	if err != nil {
		return false, nil, err
	}
	if older != nil {
		return true, []string{older.Error()}, nil
	}
	r, err := postgres.Check(ctx, f.src, postgres.CheckOptions{SetSlotLimit: slotLimit(spec.Options)})
	if err != nil {
		return false, nil, err
	}
	if len(r.Problems) > 0 {
		return false, nil, tidemark.Errorf(tidemark.Unavailable, "%s cannot be protected: %s", spec.Source, strings.Join(r.Problems, "; "))
	}
	if err := postgres.CanReceive(r.Version); err != nil {
		if spec.SLA != "" {
			if t, terr := c.template(ctx, spec.SLA); terr != nil || t.Log != nil {
				return false, nil, cmp.Or(terr, err)
			}
		}
		return false, append(r.Warnings, fmt.Sprintf("its log between captures is not received: %v; protect the cluster anew then", err)), nil
	}
	return true, r.Warnings, nil
}

// checkPatience is how long it may take to ask a cluster of another host what it is.
const checkPatience = time.Minute

// forwardsNot tells of an agent that it does not know how to forward.
func (c *Control) forwardsNot(ctx context.Context, f *forwarding) (older, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	to, err := c.dialForwarded(ctx, cancel, f)
	if errors.Is(err, agent.ErrNoForward) {
		return err, nil
	}
	if err == nil {
		_ = to.Close() // it was told nothing yet
	}
	return nil, err
}

// leftSlot is a replication slot of a cluster that could not be dropped when it was to be.
type leftSlot struct {
	ID     string `json:"id"`     // of the timeline that was
	Source string `json:"source"` // the cluster, as its host reaches it
}

// sql drops the slot.
func (s leftSlot) sql() string {
	return "SELECT pg_drop_replication_slot('tidemark_" + s.ID + "')"
}

// endLog ends the log stream of an application, if it has one, and has its cluster keep no log for us any more. Where it cannot be reached, that is told; if it is another host's, it is done when
// that is back.
func (c *Control) endLog(ctx context.Context, a app) {
	if !a.hasLog() {
		return
	}
	c.receivers.stop(a.name)
	asking, cancel := context.WithTimeout(ctx, dropTime)
	defer cancel()
	err := c.dropSlot(asking, a)
	if err == nil {
		return
	}
	s, how := leftSlot{a.t.ID(), a.Source}, "drop it there by hand"
	if a.sent() {
		c.hosts.mu.Lock()
		if c.hosts.change(ctx, a.Agent, func(k *keptHost) error {
			k.Slots = append(k.Slots, s)
			return nil
		}) == nil {
			how = "it is dropped when the host connects again, or by hand"
		}
		c.hosts.mu.Unlock()
	}
	c.event("warning", a.name, "the replication slot was not dropped, and on host %s, %s keeps its log for it: %v; %s: %s", a.Host, a.Source, err, how, s.sql())
}

// dropLeft drops what could not be dropped on a host before. What cannot be dropped now is left until it is connected again.
func (c *Control) dropLeft(ctx context.Context, host string) {
	var k keptHost
	if err := c.catalog.Get(ctx, catalog.Hosts, host, &k); err != nil {
		return // it was removed
	}
	for _, s := range k.Slots {
		if err := c.dropOn(ctx, host, s); err != nil {
			c.log.Warn("a replication slot that nobody uses any more was not dropped", "host", host, "source", s.Source, "slot", "tidemark_"+s.ID, "error", err)
			continue
		}
		c.hosts.mu.Lock()
		err := c.hosts.change(ctx, host, func(k *keptHost) error {
			k.Slots = slices.DeleteFunc(k.Slots, func(x leftSlot) bool { return x == s })
			return nil
		})
		c.hosts.mu.Unlock()
		c.event("info", "", "on host %s, %s keeps no more log for a protection that has ended", host, s.Source)
		if err != nil {
			c.log.Error("it was not noted that a replication slot is gone", "host", host, "error", err)
		}
	}
}

// dropOn drops a slot of a cluster of another host.
func (c *Control) dropOn(ctx context.Context, host string, s leftSlot) error {
	f, err := c.forward(host, s.Source, s.ID, &agent.Carried{})
	if err != nil {
		return err
	}
	defer f.close()
	ctx, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	return postgres.DropSlot(ctx, f.src, s.ID)
}
