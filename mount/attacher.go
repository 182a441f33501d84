package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/internal/again"
	"tidemark/internal/process"
	"tidemark/internal/vfs"
	"tidemark/mount/internal/nbdctl"
	"tidemark/mount/internal/relay"
)

// fuseReaders is how many goroutines take requests from the kernel; see
// DESIGN.md, "Measured".
const fuseReaders = 1

// lingerRelease is how long a detached device may stay held by somebody who
// merely looks at it (udev does) before its detaching counts as failed.
const lingerRelease = 5 * time.Second

// record is the content of attach.json.
type record struct {
	attachConfig
	process.ID
	Device string
	Made   Via    // what made the device
	Since  string // RFC 3339
}

// front is the side of the attacher that faces the kernel.
type front interface {
	// Done is closed when the kernel has let go of the disk.
	Done() <-chan struct{}
	// Close ends it: who still uses the disk gets errors.
	Close() error
}

// attacher is the state of the process.
type attacher struct {
	cfg    attachConfig
	dial   Dialer
	dir    string
	relay  *relay.Relay
	front  front
	via    Via // what made the device
	device string
	record atomic.Pointer[record] // as saved
	forced chan error             // somebody wants it to end now; the error is why its device is still there
	log    *slog.Logger

	answering sync.RWMutex // held while a detach is answered; the process ends with it held alone
}

// RunAttacher serves one attachment until it is detached, and returns nil then. It
// is all that the attacher's process does: it reads its configuration from standard input, where
// that may take its time, and nothing else; it logs to a file of the attachment's, and tells the
// process that started it through file descriptor 3 that the device is there, or why not.
// It takes the process over: signals, memory locks, descriptors. Without a configuration, because no disk
// needed it, it returns nil. dial connects with servers of other hosts; nil: there are none.
//
// SIGTERM and SIGINT, or the end of ctx, detach cleanly, unless the device is in
// use: then they are refused. What was no configuration is ErrConfig.
func RunAttacher(ctx context.Context, dial Dialer) error {
	process.SpareProcessors()
	held := process.Hold()
	o, err := readOrder(os.Stdin)
	if errors.Is(err, io.EOF) {
		return nil // no disk ever needed it
	}
	if err != nil {
		return err
	}
	if o.Chore != nil {
		return o.Chore.run(os.Stdout)
	}
	cfg := o.attachConfig
	starter := process.FromStarter()
	a := &attacher{cfg: cfg, dial: dial, dir: cfg.dir(), forced: make(chan error, 1), log: slog.New(again.Once(slog.NewTextHandler(os.Stderr, nil)))}
	stop, err := a.start(ctx, starter, held)
	if err != nil {
		a.undone()
	}
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGTERM, unix.SIGINT) // before anybody knows of the device: it would be left
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	if err := starter.Tell(err); err != nil {
		a.log.Warn("nobody was told of the device", "err", err)
	}
	if err != nil {
		return err
	}
	defer stop()
	go a.endUnknown()
	a.log.Info("attached", "via", a.via, "device", a.device, "export", cfg.Export, "size", a.relay.Info().Size)
	left := a.wait(ctx, sig)
	err = errors.Join(left, a.relay.Close(), a.front.Close())
	if left == nil && a.known() { // else whoever asked cleans up, by what is noted there
		err = errors.Join(err, removeDir(a.dir, cfg.Token))
	}
	a.answering.Lock()
	defer a.answering.Unlock()
	a.log.Info("detached", "device", a.device)
	return err
}

// errOrphan is why an attacher ends whose starter is gone.
var errOrphan = errors.New("the process that asked for the disk is gone")

// start brings the device up. On error nothing of it is left.
func (a *attacher) start(ctx context.Context, starter *process.Starter, held error) (stop func(), err error) {
	if starter.Gone() {
		return nil, errOrphan
	}
	if err := process.OwnLog(a.dir, logName); err != nil {
		return nil, err
	}
	if held != nil {
		a.log.Warn("the process may have to wait for memory that it is needed to free", "err", held)
	}
	network, address := a.cfg.endpoint()
	o := relay.Options{
		Network: network, Address: address, Export: a.cfg.Export, ReadOnly: a.cfg.ReadOnly,
		Conns: a.cfg.Connections, LogBytes: a.cfg.ReplayBytes, GiveUp: a.cfg.GiveUp, Log: a.log,
	}
	if a.cfg.Revive != nil {
		o.Revive = a.cfg.Revive.run
	}
	if a.cfg.Identity != "" {
		o.Address, o.Dial = "the server", a.dialServer
	}
	opening, stopOpening := context.WithCancel(ctx)
	stopWatch := starter.Watch(stopOpening)
	a.relay, err = relay.Open(opening, o)
	stopWatch()
	stopOpening()
	if err != nil {
		return nil, err
	}
	// The starter is most often the server itself, so when it is killed, requests wait that the kernel
	// makes while it sets the device up; and the loop driver holds locks meanwhile that every other user of a
	// loop device on the host needs. The next server undoes what was being attached and never serves it again:
	// unless we end, all of them would wait for ever.
	orphan := false
	stopWatch = starter.Watch(func() { orphan = true; a.relay.Close() })
	if err := a.present(); err != nil {
		stopWatch()
		return nil, errors.Join(err, a.relay.Close())
	}
	// What it makes in the directory stays there: by now that may be another's, who has it from a server that cannot see us.
	var l net.Listener
	if err = a.displaced(); err == nil {
		l, err = a.listen()
	}
	if err == nil {
		go process.Answer(l, a.answer) // before there is a record: who finds one learns whether we are of any use
		if starter.Gone() {
			err = errOrphan
		}
	}
	if err == nil {
		err = a.save()
	}
	if stopWatch(); err == nil && orphan { // the relay is closed, and stays so
		err = errOrphan
	}
	if err != nil {
		err = errors.Join(err, a.relay.Close(), detachDevice(a.device, a.tag(), true), a.front.Close())
		return nil, err
	}
	return func() { l.Close() }, nil
}

// dialServer connects with the server of another host.
func (a *attacher) dialServer(ctx context.Context, session uint64) (net.Conn, error) {
	if a.dial == nil {
		return nil, fmt.Errorf("%w: this program reaches no server of another host", ErrConfig)
	}
	return a.dial(ctx, a.cfg.Identity, a.cfg.Export, Session{Attacher: a.cfg.Token, Number: session})
}

// reviveLimit is how long a process may take to begin that serves a disk.
const reviveLimit = time.Minute

// run starts the process.
func (v *Revive) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reviveLimit)
	defer cancel()
	p, err := process.Start(v.Arg)
	if err == nil {
		err = p.Tell(ctx, v.Config)
	}
	if err != nil {
		return fmt.Errorf("start what serves the disk: %w", err)
	}
	return nil
}

// present makes the block device.
func (a *attacher) present() error {
	info := a.relay.Info()
	switch sector := a.cfg.Sector; {
	case info.Size == 0 || info.Size%int64(sector) != 0:
		return fmt.Errorf("%w: the export has %d bytes, not a multiple of its %d-byte sectors", ErrConfig, info.Size, sector)
	case info.MinBlock > sector:
		return fmt.Errorf("%w: the server takes blocks of %d bytes and more: use sectors of 4096", ErrConfig, info.MinBlock)
	}
	if a.cfg.Via != ViaFUSE {
		err := a.presentKernel()
		if err == nil || a.cfg.Via == ViaKernel {
			return err
		}
		a.log.Info("no kernel nbd here: FUSE and a loop device it is", "why", err)
	}
	return a.presentLoop()
}

// presentKernel makes a device of the kernel's nbd driver.
func (a *attacher) presentKernel() error {
	ctl, err := nbdctl.Open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	front, sockets, err := a.relay.ShowKernel()
	if err != nil {
		return err
	}
	a.device, err = attachNBD(ctl, nbdctl.Config{
		Size: a.relay.Info().Size, BlockSize: a.cfg.Sector, Flags: front.Flags(), Sockets: sockets, Backend: a.tag(),
	}, front.MaxTransfer())
	for _, s := range sockets {
		err = errors.Join(err, s.Close())
	}
	if err != nil {
		return errors.Join(err, front.Close())
	}
	a.front, a.via = front, ViaKernel
	return nil
}

// presentLoop makes a loop device over a FUSE file.
func (a *attacher) presentLoop() error {
	front, file, err := a.relay.Show(fuseReaders)
	if err != nil {
		return err
	}
	a.device, err = a.putLoop(file)
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, a.relay.Close(), front.Close())
	}
	front.InUse()
	a.front, a.via = front, ViaFUSE
	return nil
}

func (a *attacher) tag() string { return tagOf(a.cfg.Token) }

func tagOf(token string) string { return "tidemark:" + token }

func (a *attacher) listen() (net.Listener, error) {
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	l, err := net.Listen("unix", filepath.Join(a.dir, socketName))
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the directory goes as a whole
	return l, nil
}

// save writes attach.json, last: what has one was attached.
func (a *attacher) save() error {
	rec, err := newRecord(a.cfg, a.device, a.via)
	if err != nil {
		return err
	}
	a.record.Store(&rec)
	b, err := json.MarshalIndent(rec, "", "\t")
	if err != nil {
		return err
	}
	return vfs.WriteFile(vfs.OS, filepath.Join(a.dir, recordName), append(b, '\n'))
}

// known reports whether our record is where we put it. Who takes us for dead removes it, and may put another in its place: one who cannot see us, since
// he is on another host that has the state directory, too. Where that directory is not there itself, nothing is known.
func (a *attacher) known() bool {
	b, err := vfs.ReadFile(vfs.OS, filepath.Join(a.dir, recordName))
	if errors.Is(err, os.ErrNotExist) {
		_, err = os.Stat(a.cfg.StateDir)
		return err != nil
	}
	var rec record
	return err != nil || json.Unmarshal(b, &rec) != nil || rec.Token == a.cfg.Token
}

// recordLook is how often an attacher that has no server looks for its record.
const recordLook = 5 * time.Second

// endUnknown ends the attacher by force when it is without a server, and nobody knows it any more: its disk is never served again by the
// name that it knows, and all that use its device would wait for ever. Where others see to that, it does nothing: a host may be without its
// server and come back, and what shows production its disks does so whatever is lost.
func (a *attacher) endUnknown() {
	if a.cfg.Identity != "" || a.cfg.Revive != nil {
		return
	}
	for a.relay.Status().Connected || a.known() {
		time.Sleep(recordLook)
	}
	a.log.Error("its record is gone: it ends, for nobody would serve its disk again")
	if err := a.end(verbRemove); err != nil {
		a.log.Error("its device may be left", "device", a.device, "err", err)
	}
}

// wait returns when the kernel has let go of the disk, or somebody has forced an end; the error is why the device is still there then.
func (a *attacher) wait(ctx context.Context, sig <-chan os.Signal) error {
	end := ctx.Done()
	detaching := make(chan struct{}, 1) // full while a detach goes on that was asked for here: it may wait for the server
	for {
		select {
		case <-a.front.Done():
			return nil
		case err := <-a.forced:
			return err
		case <-sig:
		case <-end:
			end = nil
		}
		select {
		case detaching <- struct{}{}:
		default:
			continue
		}
		go func() {
			if err := a.detach(false); err != nil {
				a.log.Warn("asked to end, but goes on", "err", err)
			}
			<-detaching
		}()
	}
}

// detach flushes and takes the device down; the process ends when the kernel has
// let go of it. Forced, it ends now and whoever uses the device gets errors.
func (a *attacher) detach(force bool) error {
	if !force {
		if err := a.apart(verbDetach, false); err != nil {
			return err
		}
		select {
		case <-a.front.Done():
			return nil
		case <-time.After(lingerRelease):
			return fmt.Errorf("%s is held open by somebody, and goes at its last close: %w", a.device, ErrBusy)
		}
	}
	if a.relay.Status().Connected {
		flushed := make(chan error, 1)
		go func() { flushed <- a.apart(verbFlush, false) }()
		select {
		case <-flushed: // best effort: an error does not stop who insists
		case <-time.After(lingerRelease):
		}
	}
	a.log.Warn("detached by force", "device", a.device)
	return a.end(verbDetach)
}

// end ends the attacher, and takes its device down as verb says.
func (a *attacher) end(verb string) error {
	// Closed first: from then on the device answers at once, if only with errors, so that nothing keeps it from being taken down.
	err := a.relay.Close()
	left := a.apart(verb, true)
	select {
	case a.forced <- left:
	default: // somebody forced it before
	}
	return errors.Join(err, left)
}
