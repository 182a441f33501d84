package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/agent/remote"
	"tidemark/agent/taps"
	"tidemark/export/nbd"
	"tidemark/mount"
)

// Daemon is the agent of a host that is not the server's. It dials the server, joins it the first time, lets it call, and carries
// what the taps of the host send. Taps do not need it to serve their disks: without it they are as without a server.
type Daemon struct {
	Dir    string // its data directory, which is made if it is missing
	Server string // HOST:PORT
	Token  string // to join with; not needed again, unless the server does not let us in any more
	Logger *slog.Logger
	// Ready is told, once, that the server has let us in, and as which host, and that the tapped disks are there, as far as
	// they could be had. It may be nil.
	Ready func(host string)
}

// Pauses before a server that cannot be reached is tried again.
const (
	leastPause = 500 * time.Millisecond
	mostPause  = 15 * time.Second
)

// Run runs the agent until ctx is done, and returns nil then. A server that cannot be reached is tried again; one that does
// not let us in is an error of kind Denied.
func (d *Daemon) Run(ctx context.Context) error {
	lock, err := d.takeDir()
	if err != nil {
		return err
	}
	defer lock.Close()
	id, err := d.identity(ctx)
	if err != nil {
		return err
	}
	if err := id.SetServer(d.Server); err != nil { // for the attachers
		return err
	}
	if err := thawAttached(d.places()); err != nil {
		d.Logger.Error("a file system may be frozen", "error", err)
	}
	feeds, err := nbd.Listen("unix:" + d.places().Feeds)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { d.carryFeeds(ctx, id, feeds) })
	all.Go(func() { d.keepFresh(ctx, id) })
	defer feeds.Close()
	revived := d.reviveTaps(ctx)
	admitted := make(chan string, 1)
	all.Go(func() { d.tellReady(ctx, admitted, revived) })
	endStepsLeft(d.places())
	postAllLeft(d.places())
	return d.stayConnected(ctx, id, admitted)
}

// reviveTaps has the taps of this host run again. One whose disk hangs keeps nobody else waiting, the server least of all. done is
// closed when they run, or could not be had so far; the server goes on with them.
func (d *Daemon) reviveTaps(ctx context.Context) (done <-chan none) {
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, reviveLimit)
	end := make(chan none)
	go func() {
		defer cancel()
		if err := Revive(ctx, d.places()); err != nil && whole.Err() == nil {
			d.Logger.Error("not all that was tapped is", "error", err)
		}
	}()
	go func() {
		<-ctx.Done() // what waits for a disk that hangs may not hear of that
		close(end)
	}()
	return end
}

// tellReady tells that the server has let us in, when the tapped disks are there, too: what is started behind us needs them.
func (d *Daemon) tellReady(ctx context.Context, admitted <-chan string, revived <-chan none) {
	select {
	case host := <-admitted:
		<-revived // also when ctx is done
		if ctx.Err() == nil && d.Ready != nil {
			d.Ready(host)
		}
	case <-ctx.Done():
	}
}

// identityDir is the directory, in the data directory, of who this host is.
const identityDir = "identity"

func (d *Daemon) places() Places {
	p := PlacesIn(d.Dir)
	p.Disks, p.Identity = "", filepath.Join(d.Dir, identityDir)
	return p
}

// makeDir makes the data directory. Databases of clones run as other users, and must get through to their files.
func (d *Daemon) makeDir() error {
	if err := os.MkdirAll(d.Dir, 0o711); err != nil {
		return err
	}
	st, err := os.Stat(d.Dir)
	if err == nil && st.Mode().Perm()&0o011 != 0o011 { // of a release that had no clones
		err = os.Chmod(d.Dir, st.Mode().Perm()|0o011)
	}
	return errors.Join(err, os.MkdirAll(filepath.Join(d.Dir, "run"), 0o700))
}

// takeDir makes the directory and keeps other agents out of it.
func (d *Daemon) takeDir() (*os.File, error) {
	if err := d.makeDir(); err != nil {
		return nil, tidemark.Errorf(tidemark.Unavailable, "the data directory cannot be made: %w", err).WithHint("choose another with --data, or run as root")
	}
	f, err := os.OpenFile(filepath.Join(d.Dir, "run", "agent.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Denied, "the data directory cannot be used: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(tidemark.Errorf(tidemark.Conflict, "another agent runs on %s", d.Dir).WithHint("stop it first, or choose another --data"), f.Close())
	}
	return f, nil
}

// EndTaps ends all taps of a host that no server can end any more, and returns the disks that were tapped: they alone are what the tapped disks
// were. While one is in use, it is an error of kind Conflict. Disks that the server has shown here are nothing without it: they are taken away
// whether they are in use or not.
func (d *Daemon) EndTaps(ctx context.Context) (primaries []string, err error) {
	lock, err := d.takeDir()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	places := d.places()
	if _, err := (Here{Places: places}).detachStrays(ctx, nil); err != nil {
		return nil, err
	}
	list, err := mount.List(places.Attached)
	if err != nil {
		return nil, err
	}
	for _, at := range list {
		if err := detach(ctx, at); err != nil {
			return nil, fmt.Errorf("detach %s: %w", at.Name(), err)
		}
	}
	dirs, err := filepath.Glob(filepath.Join(places.Taps, "*"))
	for _, dir := range dirs {
		x, err := taps.Find(dir)
		if err == nil {
			err = x.Stop(ctx)
		}
		if err != nil && !errors.Is(err, taps.ErrNotFound) {
			return primaries, err
		}
		if x != nil {
			primaries = append(primaries, x.Config().Primaries...)
		}
		if err := os.RemoveAll(dir); err != nil {
			return primaries, err
		}
	}
	return primaries, errors.Join(err, os.RemoveAll(places.Devices))
}

// identity returns who this host is, and joins the server if it is nobody yet.
func (d *Daemon) identity(ctx context.Context) (*remote.Identity, error) {
	dir := filepath.Join(d.Dir, identityDir)
	id, err := remote.OpenIdentity(dir)
	if !errors.Is(err, os.ErrNotExist) {
		return id, err
	}
	if d.Token == "" {
		return nil, tidemark.Errorf(tidemark.Invalid, "this host has not joined a server").WithHint("`tidemark host add NAME` on the server makes a token; give it with --token-file")
	}
	t, err := remote.ParseToken(d.Token)
	if err != nil {
		return nil, err
	}
	return remote.Join(ctx, d.Server, t, dir)
}

// stayConnected lets the server call, over one connection after another. That it has let us in is sent once, with the name of our host. Where another machine
// has our place by a copy of our identity, we are tried again, and a token, if it is good, shuts that one out.
func (d *Daemon) stayConnected(ctx context.Context, id *remote.Identity, admitted chan<- string) error {
	pause, ready, tried := leastPause, false, false
	for {
		conn, err := id.Dial(ctx, d.Server, remote.Request{For: remote.Calls})
		if err == nil {
			pause = leastPause
			if !ready {
				admitted <- id.Host()
			}
			ready = true
			err = d.serve(ctx, id, conn)
			d.Logger.Warn("the connection to the server ended", "error", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		switch tidemark.KindOf(err) {
		case tidemark.Denied:
			if !d.rejoin(ctx, id) {
				return err
			}
		case tidemark.Conflict:
			if !tried { // one that was used is good for nothing the next time, either
				tried = true
				d.rejoin(ctx, id)
			}
		}
		if err != nil {
			d.Logger.Warn("the server is tried again", "server", d.Server, "in", pause, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, mostPause)
	}
}

// freshEvery is how often the age of our certificate is looked at.
const freshEvery = time.Hour

// keepFresh renews the certificate before it is too old.
func (d *Daemon) keepFresh(ctx context.Context, id *remote.Identity) {
	for {
		if id.Due() {
			if err := id.Renew(ctx, d.Server); err != nil && ctx.Err() == nil {
				d.Logger.Error("the certificate of this host was not renewed, and is tried again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(freshEvery):
		}
	}
}

// rejoin joins once more where we are not let in, if there is a token that can be used.
func (d *Daemon) rejoin(ctx context.Context, id *remote.Identity) bool {
	t, err := remote.ParseToken(d.Token)
	if err == nil {
		err = id.Rejoin(ctx, d.Server, t)
	}
	if err == nil {
		d.Logger.Warn("this host has joined anew", "server", d.Server, "host", id.Host())
	}
	return err == nil
}

// serve answers the server's calls until the connection ends.
func (d *Daemon) serve(ctx context.Context, id *remote.Identity, conn net.Conn) error {
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	s := newSession(conn)
	s.cut = cut
	s.places = d.places()
	s.dial = func(ctx context.Context, purpose string) (net.Conn, error) {
		return id.Dial(ctx, d.Server, remote.Request{For: purpose})
	}
	return cmp.Or(s.serve(ctx), context.Cause(ctx)) // that it was cut is no error of what was heard
}

// carryFeeds gives each connection that a tap makes here one to the server.
func (d *Daemon) carryFeeds(ctx context.Context, id *remote.Identity, l net.Listener) {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		all.Go(func() {
			if err := d.carry(ctx, id, conn); err != nil && ctx.Err() == nil {
				d.Logger.Warn("the stream of a tap ended", "error", err)
			}
		})
	}
}

func (d *Daemon) carry(ctx context.Context, id *remote.Identity, tap net.Conn) error {
	defer tap.Close()
	server, err := id.Dial(ctx, d.Server, remote.Request{For: remote.Feed})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	ends := make(chan error, 2)
	for _, way := range [][2]net.Conn{{server, tap}, {tap, server}} {
		go func() {
			_, err := io.CopyBuffer(struct{ io.Writer }{way[0]}, struct{ io.Reader }{way[1]}, make([]byte, carryBuffer))
			ends <- err
		}()
	}
	err = <-ends // what one end has to say last is said in order; then nobody is left to hear more
	server.Close()
	tap.Close()
	<-ends
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("carry a stream: %w", err)
	}
	return nil
}

// carryBuffer is how much is carried at once, in bytes.
const carryBuffer = 256 << 10
