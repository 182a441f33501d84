// Package nbdctl commands the kernel's nbd driver: it makes a block device of
// connected sockets, takes it down, and says which there are.
//
// It speaks the driver's generic netlink family, which is its only interface that can
// name the owner of a device ([Config.Backend], Linux 5.14): that name is
// what later tells a device of ours from somebody else's of the same number.
//
// Everything here needs root.
package nbdctl

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrAbsent: this kernel has no nbd driver, or one older than Linux 5.14.
var ErrAbsent = errors.New("this kernel has no usable nbd driver")

// Numbers of linux/nbd-netlink.h.
const (
	familyName    = "nbd"
	familyVersion = 1

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdStatus      = 5

	attrIndex           = 1
	attrSize            = 2
	attrBlockSize       = 3
	attrTimeout         = 4
	attrServerFlags     = 5
	attrSockets         = 7
	attrDeadConnTimeout = 8
	attrDeviceList      = 9
	attrBackend         = 10

	attrSocketItem = 1
	attrSocketFD   = 1

	attrDeviceItem      = 1
	attrDeviceIndex     = 1
	attrDeviceConnected = 2
)

// Config describes a device to make.
type Config struct {
	Size      int64      // bytes; a multiple of BlockSize
	BlockSize int        // of a logical sector: a power of two from 512 to the page size
	Flags     uint64     // NBD transmission flags
	Sockets   []*os.File // connected and in the transmission phase; the kernel keeps its own reference
	Backend   string     // who owns the device

	// Timeout is how long a request may take before the kernel gives its connection
	// up, in whole seconds. 0: one connection is never given up; with
	// several, the kernel's own 30 seconds apply.
	Timeout time.Duration
	// DeadConn is how long requests wait for Reconfigure, in whole
	// seconds, when no connection is left. 0: they fail at once.
	DeadConn time.Duration
}

// Control is a connection to the driver.
type Control struct {
	conn   *genetlink.Conn
	family genetlink.Family
}

// Open finds the driver, after loading its module where that is possible and
// needed. ErrAbsent if there is none.
func Open() (*Control, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("generic netlink: %w", err)
	}
	f, err := c.GetFamily(familyName)
	if errors.Is(err, os.ErrNotExist) && loadable() {
		// Its failure shows in what follows: there is no family then.
		_ = exec.Command("modprobe", "-q", "nbd").Run()
		f, err = c.GetFamily(familyName)
	}
	if errors.Is(err, os.ErrNotExist) {
		err = ErrAbsent
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &Control{conn: c, family: f}, nil
}

// loadable reports that this kernel comes with the module. To ask modprobe instead would
// cost each attach of a host without it some 20 ms.
func loadable() bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	deps, err := os.ReadFile(filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:]), "modules.dep"))
	return err == nil && bytes.Contains(deps, []byte("/nbd.ko"))
}

// Close ends the connection; devices stay.
func (c *Control) Close() error { return c.conn.Close() }

// Connect makes a device of a number that is free, and returns the number.
func (c *Control) Connect(cfg Config) (index int, err error) {
	ae := netlink.NewAttributeEncoder()
	ae.Uint64(attrSize, uint64(cfg.Size))
	ae.Uint64(attrBlockSize, uint64(cfg.BlockSize))
	ae.Uint64(attrServerFlags, cfg.Flags)
	ae.String(attrBackend, cfg.Backend)
	putTimes(ae, cfg)
	ae.Nested(attrSockets, sockets(cfg.Sockets))
	replies, err := c.do(cmdConnect, netlink.Request, ae)
	if err != nil {
		return 0, fmt.Errorf("connect a kernel nbd device: %w", err)
	}
	index = -1
	for _, m := range replies {
		ad, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return 0, fmt.Errorf("answer of the nbd driver: %w", err)
		}
		for ad.Next() {
			if ad.Type() == attrIndex {
				index = int(ad.Uint32())
			}
		}
	}
	if index < 0 {
		return 0, errors.New("the nbd driver did not say which device it made")
	}
	if got, _ := Backend(Path(index)); got != cfg.Backend {
		return 0, errors.Join(fmt.Errorf("%w: it does not keep the names of owners", ErrAbsent), c.Disconnect(index))
	}
	return index, nil
}

// Reconfigure gives a device of ours new sockets for connections that died. What was
// in flight on those is sent again.
func (c *Control) Reconfigure(index int, cfg Config) error {
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(attrIndex, uint32(index))
	ae.String(attrBackend, cfg.Backend)
	putTimes(ae, cfg)
	ae.Nested(attrSockets, sockets(cfg.Sockets))
	if _, err := c.do(cmdReconfigure, netlink.Request|netlink.Acknowledge, ae); err != nil {
		return fmt.Errorf("reconfigure %s: %w", Path(index), err)
	}
	return nil
}

// Disconnect takes a device down. Who has it open gets errors from then on, and
// its number becomes free at the last close.
func (c *Control) Disconnect(index int) error {
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(attrIndex, uint32(index))
	if _, err := c.do(cmdDisconnect, netlink.Request|netlink.Acknowledge, ae); err != nil {
		return fmt.Errorf("disconnect %s: %w", Path(index), err)
	}
	return nil
}

// Connected lists the devices in use, whoever made them.
func (c *Control) Connected() ([]int, error) {
	replies, err := c.do(cmdStatus, netlink.Request, netlink.NewAttributeEncoder())
	if err != nil {
		return nil, fmt.Errorf("list kernel nbd devices: %w", err)
	}
	var list []int
	for _, m := range replies {
		ad, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return nil, fmt.Errorf("answer of the nbd driver: %w", err)
		}
		for ad.Next() {
			if ad.Type() == attrDeviceList {
				ad.Nested(func(items *netlink.AttributeDecoder) error { return devices(items, &list) })
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("answer of the nbd driver: %w", err)
		}
	}
	return list, nil
}

// devices reads a list of NBD_DEVICE_ITEMs.
func devices(items *netlink.AttributeDecoder, list *[]int) error {
	for items.Next() {
		if items.Type() != attrDeviceItem {
			continue
		}
		index, connected := -1, false
		items.Nested(func(item *netlink.AttributeDecoder) error {
			for item.Next() {
				switch item.Type() {
				case attrDeviceIndex:
					index = int(item.Uint32())
				case attrDeviceConnected:
					connected = item.Uint8() != 0
				}
			}
			return item.Err()
		})
		if connected && index >= 0 {
			*list = append(*list, index)
		}
	}
	return items.Err()
}

func putTimes(ae *netlink.AttributeEncoder, cfg Config) {
	if cfg.Timeout > 0 {
		ae.Uint64(attrTimeout, uint64(cfg.Timeout/time.Second))
	}
	if cfg.DeadConn > 0 {
		ae.Uint64(attrDeadConnTimeout, uint64(cfg.DeadConn/time.Second))
	}
}

func sockets(files []*os.File) func(*netlink.AttributeEncoder) error {
	return func(list *netlink.AttributeEncoder) error {
		for _, f := range files {
			list.Nested(attrSocketItem, func(item *netlink.AttributeEncoder) error {
				item.Uint32(attrSocketFD, uint32(f.Fd()))
				return nil
			})
		}
		return nil
	}
}

// do sends one command. Commands that have an answer must not ask for an
// acknowledgement besides, which nobody would take.
func (c *Control) do(cmd uint8, flags netlink.HeaderFlags, ae *netlink.AttributeEncoder) ([]genetlink.Message, error) {
	data, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	m := genetlink.Message{Header: genetlink.Header{Command: cmd, Version: familyVersion}, Data: data}
	return c.conn.Execute(m, c.family.ID, flags)
}

// Path returns the block device of a number.
func Path(index int) string { return fmt.Sprintf("/dev/nbd%d", index) }

// Index returns the number of a block device, false if it is not one of nbd's.
func Index(path string) (int, bool) {
	s, ok := strings.CutPrefix(path, "/dev/nbd")
	n, err := strconv.Atoi(s)
	return n, ok && err == nil && n >= 0
}

// Backend returns the owner of a device: "" if it is not in use or its owner gave no name.
func Backend(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(path), "backend"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// SetMaxTransfer bounds the requests that the kernel makes of a device, in bytes.
func SetMaxTransfer(index, n int) error {
	path := fmt.Sprintf("/sys/block/nbd%d/queue/max_sectors_kb", index)
	if err := os.WriteFile(path, []byte(strconv.Itoa(n>>10)), 0); err != nil {
		return fmt.Errorf("bound the requests of %s: %w", Path(index), err)
	}
	return nil
}
