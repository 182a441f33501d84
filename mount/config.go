package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"tidemark/internal/process"
	"tidemark/mount/internal/relay"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrBusy: the device is mounted, or held by somebody else. Nothing was changed.
	ErrBusy = errors.New("the device is in use")
	// ErrExists: an attachment of that name is there already, alive or stale.
	ErrExists = errors.New("already attached")
	// ErrNotFound: no attachment of that name.
	ErrNotFound = errors.New("no such attachment")
	// ErrStale: the attacher of this attachment is gone; only Cleanup makes sense.
	ErrStale = errors.New("the attachment is stale")
	// ErrDamaged: the record of this attachment cannot be read.
	ErrDamaged = errors.New("the attachment's record is damaged")
	// ErrConfig: the configuration makes no sense. Nothing was changed.
	ErrConfig = errors.New("bad attach configuration")
)

// Via is what makes a block device of the attacher's bytes.
type Via string

const (
	// ViaKernel is the kernel's nbd driver, Linux 5.14 or later: /dev/nbdN. The attacher is its server.
	ViaKernel Via = "nbd"
	// ViaFUSE is a loop device over a FUSE file of the attacher's: /dev/loopN.
	ViaFUSE Via = "fuse"
)

// Config says what to attach and how.
type Config struct {
	// Name names the attachment and its directory below StateDir: letters, digits,
	// '.', '_', '-' and '@', at most 100, not starting with a dot.
	Name string
	// StateDir holds one directory per attachment. It must not lie on a disk that
	// is attached here: the attacher would wait for itself.
	StateDir string
	// URI names server and export: nbd+unix:///EXPORT?socket=PATH or
	// nbd://HOST[:PORT]/EXPORT. It is a short form of Socket or Address, and Export.
	URI string `json:",omitempty"`
	// Socket is the path of the server's unix socket.
	Socket string `json:",omitempty"`
	// Address is the server's HOST:PORT, where there is no Socket.
	Address string `json:",omitempty"`
	// Identity is the directory of who this host is to a server elsewhere, where there is neither Socket nor Address: see [Dialer].
	Identity string `json:",omitempty"`
	// Export is the name of the export at the server.
	Export string `json:",omitempty"`
	// ReadOnly makes a device that takes no writes.
	ReadOnly bool `json:",omitempty"`
	// Sector is the logical sector size of the device: 512 (default) or 4096. A
	// file system made on 512-byte sectors may not mount on 4096-byte ones, so
	// only choose 4096 for disks that had it from the beginning.
	Sector int `json:",omitempty"`
	// Connections is the most connections to use, 0 for the default. Servers that do not
	// offer multi-conn get one.
	Connections int `json:",omitempty"`
	// ReplayBytes bounds the writes held for replay, 0 for 64 MiB.
	ReplayBytes int `json:",omitempty"`
	// GiveUp is how long the server may be unreachable before all I/O fails for
	// good. 0 means never: I/O waits.
	GiveUp time.Duration `json:",omitempty"`
	// Via says what makes the block device; see [Via]. Default: ViaKernel where the
	// kernel has it, otherwise ViaFUSE.
	Via Via `json:",omitempty"`
	// Revive starts the process that serves the export anew when it has died; nil: that is for others to do, and I/O waits
	// for them.
	Revive *Revive `json:",omitempty"`
}

// Session names one try of an attacher to be served. A server that lives on through the end of a connection has to end what came in
// earlier sessions of an export before it serves a later one: else it could execute an old write behind a newer one to the same place.
type Session struct {
	Attacher string // another one for each that is started
	Number   uint64 // grows with each session of it
}

// ErrShutOut is what a [Dialer] says of a server that lets nobody in any more by the identity that is there.
var ErrShutOut = relay.ErrShutOut

// Dialer connects with the server of another host for an export, by the identity in a directory. An error of kind Denied is tried again
// less often than others; with one that wraps ErrShutOut all I/O fails for good, if it is told for as long as it may take to get another identity.
type Dialer func(ctx context.Context, identity, export string, s Session) (net.Conn, error)

// Revive says which process of this program serves an export, as [process.Start] and its Tell want to know it. It has to keep a second one of
// itself out: several may be started at once.
type Revive struct {
	Arg    string
	Config json.RawMessage
}

// attachConfig is what an attacher process is told.
type attachConfig struct {
	Config
	// Token marks the block device as belonging to this attachment.
	Token string
}

// dir is the directory of the attachment's state.
func (c *attachConfig) dir() string { return filepath.Join(c.StateDir, c.Name) }

// readOrder reads what [Attach] wrote to the standard input of the attacher it started, or an attacher to that of another process.
func readOrder(r io.Reader) (order, error) {
	var o order
	if err := process.ReadConfig(r, &o); err != nil {
		return o, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if o.Chore != nil {
		return o, nil
	}
	return o, o.check()
}

// check fills in the defaults and refuses what makes no sense.
func (c *Config) check() error {
	if err := checkName(c.Name); err != nil {
		return err
	}
	if c.URI != "" {
		if err := c.parseURI(); err != nil {
			return err
		}
	}
	abs, err := filepath.Abs(c.StateDir)
	if err != nil {
		return err
	}
	switch {
	case c.StateDir == "":
		return fmt.Errorf("%w: no state directory", ErrConfig)
	case c.servers() != 1:
		return fmt.Errorf("%w: give the server's socket, or its address, or an identity", ErrConfig)
	case len(c.Export) > 4096:
		return fmt.Errorf("%w: export name of %d bytes", ErrConfig, len(c.Export))
	case c.Sector != 0 && c.Sector != 512 && c.Sector != 4096:
		return fmt.Errorf("%w: sectors of %d bytes: use 512 or 4096", ErrConfig, c.Sector)
	case c.Connections < 0 || c.Connections > 16:
		return fmt.Errorf("%w: %d connections: use 1 to 16", ErrConfig, c.Connections)
	case c.ReplayBytes != 0 && (c.ReplayBytes < 8<<20 || c.ReplayBytes > 4<<30):
		return fmt.Errorf("%w: replay memory of %d bytes: use 8 MiB to 4 GiB", ErrConfig, c.ReplayBytes)
	case c.Via != "" && c.Via != ViaKernel && c.Via != ViaFUSE:
		return fmt.Errorf("%w: via %q: use %s or %s", ErrConfig, c.Via, ViaKernel, ViaFUSE)
	case c.GiveUp < 0:
		return fmt.Errorf("%w: give up after %v", ErrConfig, c.GiveUp)
	}
	c.StateDir = abs
	if c.Sector == 0 {
		c.Sector = 512
	}
	if c.ReplayBytes == 0 {
		c.ReplayBytes = 64 << 20
	}
	return nil
}

// servers counts the ways to a server that are given.
func (c *Config) servers() (n int) {
	for _, way := range []string{c.Socket, c.Address, c.Identity} {
		if way != "" {
			n++
		}
	}
	return n
}

func (c *Config) parseURI() error {
	u, err := url.Parse(c.URI)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrConfig, err)
	}
	switch u.Scheme {
	case "nbd+unix":
		c.Socket = u.Query().Get("socket")
	case "nbd":
		c.Address = u.Host
		if u.Port() == "" {
			c.Address = u.Host + ":10809"
		}
	default:
		return fmt.Errorf("%w: %q: use nbd+unix:///EXPORT?socket=PATH or nbd://HOST:PORT/EXPORT", ErrConfig, c.URI)
	}
	c.Export, c.URI = strings.TrimPrefix(u.Path, "/"), ""
	return nil
}

// endpoint returns what to dial.
func (c *Config) endpoint() (network, address string) {
	if c.Socket != "" {
		return "unix", c.Socket
	}
	return "tcp", c.Address
}

func checkName(name string) error {
	ok := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-@", r)
	}
	if name == "" || len(name) > 100 || name[0] == '.' || strings.ContainsFunc(name, func(r rune) bool { return !ok(r) }) {
		return fmt.Errorf("%w: name %q: use letters, digits, '.', '_', '-', '@'", ErrConfig, name)
	}
	return nil
}
