package taps

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
	"time"

	"golang.org/x/sys/unix"

	"tidemark/capture"
	"tidemark/capture/tap"
	"tidemark/export/nbd"
	"tidemark/internal/again"
	"tidemark/internal/process"
	"tidemark/internal/vfs"
	"tidemark/wire"
)

// Verbs of the control socket.
const (
	verbStatus   = "status"
	verbBookmark = "bookmark"
	verbHold     = "hold"
	verbRelease  = "release"
	verbResync   = "resync"
	verbStop     = "stop"
)

type request struct {
	Verb string
	Mark *capture.Mark `json:",omitempty"`
}

type reply struct {
	Error    string  `json:",omitempty"`
	Gap      bool    `json:",omitempty"` // Error is tap.ErrGap
	Attached bool    `json:",omitempty"` // Error is ErrAttached
	Status   *Status `json:",omitempty"`
}

// leaving is how long a connection that is just being closed may take.
const leaving = 3 * time.Second

// lastSend is how long a tap that is stopped tries to get rid of its queue.
const lastSend = 5 * time.Second

// host is the process.
type host struct {
	cfg     Config
	log     *slog.Logger
	lock    *os.File
	tap     *tap.Tap
	sectors []int
	table   *nbd.Table
	nbd     *nbd.Server
	stops   chan struct{} // somebody asked for the end, and may

	mu      sync.Mutex
	release func() bool // of a hold; nil: none
	until   time.Time   // it ends by itself then
}

// longestHold is how long a tap holds writes at most, if nobody tells it to let them go on.
const longestHold = 2 * time.Second

// Run is all that the process of a tap does: it reads its [Config] from standard input, serves the tapped disks
// until it is told to stop, and returns nil. Without a configuration, because nothing needed it, it returns nil.
//
// SIGTERM and SIGINT, or the end of ctx, stop it, unless its disks are attached: then they are refused. It takes
// the process over: signals, memory locks, descriptors.
func Run(ctx context.Context) error {
	process.SpareProcessors()
	held := process.Hold()
	var cfg Config
	err := process.ReadConfig(os.Stdin, &cfg)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	starter := process.FromStarter()
	h := &host{cfg: cfg, log: slog.New(again.Once(slog.NewTextHandler(os.Stderr, nil))), stops: make(chan struct{}, 1)}
	err = h.start(starter, held)
	if terr := starter.Tell(err); terr != nil {
		h.log.Warn("nobody was told that the tap is there", "error", terr)
	}
	if err != nil {
		return err
	}
	h.log.Info("tapped", "primaries", cfg.Primaries, "timeline", cfg.Timeline)
	h.wait(ctx)
	return h.end()
}

// start opens the disks and serves them. On error nothing is left open.
func (h *host) start(starter *process.Starter, held error) (err error) {
	if err := process.OwnLog(h.cfg.Dir, logName); err != nil {
		return err
	}
	if held != nil {
		h.log.Warn("the process may have to wait for memory that it is needed to free", "error", held)
	}
	if err := h.takeDir(); err != nil {
		return err
	}
	if err := h.openTap(); err != nil {
		return errors.Join(err, h.lock.Close())
	}
	err = h.serve()
	if err == nil && starter.Gone() {
		err = errors.New("the process that asked for the tap is gone")
	}
	if err != nil {
		return errors.Join(err, h.end())
	}
	return nil
}

// dying is how long the tap before us may take to be gone for good: one that was killed may have to finish a system call first.
const dying = 2 * time.Second

// takeDir keeps other taps out of the directory.
func (h *host) takeDir() error {
	f, err := os.OpenFile(filepath.Join(h.cfg.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	for until := time.Now().Add(dying); ; time.Sleep(10 * time.Millisecond) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			h.lock = f
			return nil
		}
		if time.Now().After(until) {
			return errors.Join(fmt.Errorf("another tap uses %s", h.cfg.Dir), f.Close())
		}
	}
}

func (h *host) openTap() error {
	var primaries []tap.Primary
	closeAll := func(err error) error {
		for _, p := range primaries {
			err = errors.Join(err, p.Close())
		}
		return err
	}
	for _, path := range h.cfg.Primaries {
		p, err := tap.OpenPrimary(path)
		if err != nil {
			return closeAll(err)
		}
		primaries = append(primaries, p)
		n, err := tap.Sector(p)
		if err != nil {
			return closeAll(err)
		}
		h.sectors = append(h.sectors, n)
	}
	var err error
	h.tap, err = tap.Open(tap.Options{Dir: h.cfg.Dir, Primaries: primaries, Memory: h.cfg.Memory, Spill: h.cfg.Spill, Logger: h.log,
		Sink: &wire.Client{Timeline: h.cfg.Timeline, Dial: h.dial}})
	return err // which has closed them
}

func (h *host) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", h.cfg.Server)
}

// serve serves the disks and the control socket, and notes that, last.
func (h *host) serve() error {
	h.table = nbd.NewTable()
	for i, d := range h.tap.Disks() {
		if err := h.table.Add(&nbd.Export{Name: Export(i), Description: h.cfg.Primaries[i], Device: d}); err != nil {
			return err
		}
	}
	disks, err := nbd.Listen("unix:" + filepath.Join(h.cfg.Dir, diskName))
	if err != nil {
		return err
	}
	h.nbd = nbd.NewServer(h.table, nbd.Options{Logger: h.log})
	go func() {
		if err := h.nbd.Serve(disks); err != nil && !errors.Is(err, nbd.ErrServerClosed) {
			h.log.Error("the disks are served no more", "error", err)
		}
	}()
	control, err := nbd.Listen("unix:" + filepath.Join(h.cfg.Dir, controlName))
	if err != nil {
		return err
	}
	go process.Answer(control, h.answer)
	id, err := process.Self()
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(record{Config: h.cfg, ID: id, Since: time.Now().UTC()}, "", "\t")
	if err != nil {
		return err
	}
	return vfs.WriteFile(vfs.OS, filepath.Join(h.cfg.Dir, recordName), append(data, '\n'))
}

func (h *host) answer(req request, send func(any)) {
	var r reply
	var err error
	switch {
	case req.Verb == verbStatus:
		s := Status{Status: h.tap.Status(), Attached: h.attached(), Sectors: h.sectors}
		for _, d := range h.tap.Disks() {
			s.Sizes = append(s.Sizes, d.Size())
		}
		r.Status = &s
	case req.Verb == verbBookmark && req.Mark != nil:
		err = h.tap.Bookmark(*req.Mark)
	case req.Verb == verbHold:
		err = h.hold()
	case req.Verb == verbRelease:
		err = h.letGo()
	case req.Verb == verbResync:
		h.tap.Resync()
	case req.Verb == verbStop:
		if err = h.awaitLeave(); err == nil {
			send(r)
			h.stop()
			return
		}
	default:
		err = fmt.Errorf("unknown request %q", req.Verb)
	}
	if err != nil {
		r.Error, r.Gap, r.Attached = err.Error(), errors.Is(err, tap.ErrGap), errors.Is(err, ErrAttached)
	}
	send(r)
}

// hold lets no write begin.
func (h *host) hold() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.release != nil && time.Now().Before(h.until) {
		return errors.New("writes are held already")
	}
	// One that has ended by itself is of somebody who has died, or he would have released it.
	h.until = time.Now().Add(longestHold)
	h.release = h.tap.Hold(longestHold)
	return nil
}

// letGo ends a hold. It fails if that had ended by itself.
func (h *host) letGo() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.release == nil {
		return errors.New("no writes are held")
	}
	release := h.release
	h.release = nil
	if !release() {
		return fmt.Errorf("writes went on after %v", longestHold)
	}
	return nil
}

// attached returns how many connections to the disks there are.
func (h *host) attached() (n int) {
	for i := range h.tap.Disks() {
		n += h.table.Users(Export(i))
	}
	return n
}

// awaitLeave waits a moment for who has just detached the disks: that an attacher has ended is known before its
// connections are.
func (h *host) awaitLeave() (err error) {
	for end := time.Now().Add(leaving); ; time.Sleep(5 * time.Millisecond) {
		if err = h.mayStop(); err == nil || time.Now().After(end) {
			return err
		}
	}
}

func (h *host) mayStop() error {
	if h.attached() > 0 {
		return ErrAttached
	}
	return nil
}

func (h *host) stop() {
	select {
	case h.stops <- struct{}{}:
	default:
	}
}

// wait returns when the process is to end.
func (h *host) wait(ctx context.Context) {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(sig)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	end := ctx.Done()
	for {
		select {
		case <-h.stops:
			return
		case <-sig:
		case <-end:
			end = nil
		}
		if err := h.mayStop(); err == nil {
			return
		}
		h.log.Warn("asked to end, but goes on: its disks are attached")
	}
}

// end closes everything.
func (h *host) end() error {
	var errs []error
	if h.nbd != nil {
		errs = append(errs, h.nbd.Close())
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastSend)
	defer cancel()
	errs = append(errs, h.tap.Close(ctx), h.lock.Close())
	h.log.Info("the tap ends")
	return errors.Join(errs...)
}
