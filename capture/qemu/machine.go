package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"tidemark"
)

// Disk is a disk of a machine.
type Disk struct {
	Node   string // QEMU's node: what is read and mirrored
	Device string // the name of its -drive, if it has one
	QDev   string // the guest's device, if it is one
	Size   int64  // bytes, as the guest sees it
	Format string

	bitmaps []bitmap
}

// bitmap is a dirty bitmap of a node.
type bitmap struct {
	Name         string `json:"name"`
	Count        int64  `json:"count"` // dirty bytes
	Recording    bool   `json:"recording"`
	Inconsistent bool   `json:"inconsistent"`
}

// ID is the disk's most lasting name, for the option `disk`.
func (d *Disk) ID() string {
	switch {
	case d.Node != "" && !strings.HasPrefix(d.Node, "#"):
		return d.Node
	case d.Device != "":
		return d.Device
	case d.QDev != "":
		return d.frontend()
	}
	return d.Node
}

// frontend is the name of the guest's device: /machine/peripheral/NAME/virtio-backend of one that was named.
func (d *Disk) frontend() string {
	name, named := strings.CutPrefix(d.QDev, "/machine/peripheral/")
	if named {
		name, _, _ = strings.Cut(name, "/")
	}
	return name
}

// is reports whether the user means this disk.
func (d *Disk) is(name string) bool {
	return name != "" && slices.Contains([]string{d.Node, d.Device, d.QDev, d.frontend()}, name)
}

// node is a block node as QEMU lists it.
type node struct {
	Name     string   `json:"node-name"`
	ReadOnly bool     `json:"ro"`
	Driver   string   `json:"drv"`
	Bitmaps  []bitmap `json:"dirty-bitmaps"`
	Image    struct {
		Size int64 `json:"virtual-size"`
	} `json:"image"`
}

func (n *node) disk() Disk {
	return Disk{Node: n.Name, Size: n.Image.Size, Format: n.Driver, bitmaps: n.Bitmaps}
}

// export is what a machine serves of its nodes to others.
type export struct {
	ID   string `json:"id"`
	Node string `json:"node-name"`
	Type string `json:"type"`
}

// disks lists what a machine's guest can write; of a storage daemon, what it exports.
func (m *Monitor) disks(ctx context.Context) ([]Disk, error) {
	var devices []struct {
		Device   string `json:"device"`
		QDev     string `json:"qdev"`
		Inserted *node  `json:"inserted"`
	}
	if err := m.Run(ctx, "query-block", nil, &devices); err != nil {
		return nil, err
	}
	var list []Disk
	for _, d := range devices {
		firmware := strings.HasPrefix(d.Device, "pflash") || strings.HasPrefix(d.QDev, "/machine/system.flash")
		if d.Inserted == nil || d.Inserted.ReadOnly || firmware || d.QDev == "" && d.Device == "" {
			continue
		}
		disk := d.Inserted.disk()
		disk.Device, disk.QDev = d.Device, d.QDev
		list = append(list, disk)
	}
	var exports []export
	if err := m.Run(ctx, "query-block-exports", nil, &exports); err != nil {
		return nil, err
	}
	var nodes []node
	if err := m.Run(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return nil, err
	}
	slices.SortFunc(nodes, func(a, b node) int { return strings.Compare(a.Name, b.Name) })
	for _, n := range nodes {
		exported := slices.ContainsFunc(exports, func(e export) bool { return e.Node == n.Name })
		listed := slices.ContainsFunc(list, func(d Disk) bool { return d.Node == n.Name })
		if exported && !listed && !n.ReadOnly {
			list = append(list, n.disk())
		}
	}
	return list, nil
}

// choose returns the disks that names mean, in their order; all, if there are none.
func (m *Monitor) choose(ctx context.Context, names []string) ([]Disk, error) {
	list, err := m.disks(ctx)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, tidemark.Errorf(tidemark.NotFound, "the machine has no disk that can be written").WithHint("start it with one, and protect it then")
	}
	if len(names) > 0 {
		if list, err = pick(list, names); err != nil {
			return nil, err
		}
	}
	for _, d := range list {
		if slices.Contains([]string{"mirror_top", "commit_top", "copy-before-write"}, d.Format) {
			return nil, tidemark.Errorf(tidemark.Conflict, "the disk %s of the machine is worked on by another block job", d.ID()).
				WithHint("end that first (query-block-jobs); if it is another protection of this machine, unprotect that")
		}
		if strings.HasPrefix(d.ID(), "#") {
			return nil, tidemark.Errorf(tidemark.Invalid, "the machine's disk %s has no name that lasts", d.ID()).
				WithHint("start the machine with -drive id=NAME, -blockdev node-name=NAME or -device id=NAME for it")
		}
	}
	return list, nil
}

func pick(list []Disk, names []string) ([]Disk, error) {
	var picked []Disk
	for i, name := range names {
		at := slices.IndexFunc(list, func(d Disk) bool { return d.is(name) })
		if at < 0 {
			var ids []string
			for _, d := range list {
				ids = append(ids, d.ID())
			}
			return nil, tidemark.Errorf(tidemark.NotFound, "the machine has no disk %q", name).WithHint("it has " + strings.Join(ids, ", "))
		}
		if slices.ContainsFunc(picked, func(d Disk) bool { return d.is(name) }) {
			return nil, tidemark.Errorf(tidemark.Invalid, "the disk %q is named twice", names[i]).WithHint("name each disk once")
		}
		picked = append(picked, list[at])
	}
	return picked, nil
}

// findTime bounds a look at a machine.
const findTime = 15 * time.Second

// Find looks at a machine, and returns the disks that names mean, in their order; all that the guest can write, if there are
// none. Its errors say what is wrong with the socket or the names, and what to do.
func Find(ctx context.Context, socket string, names []string) ([]Disk, error) {
	ctx, cancel := context.WithTimeout(ctx, findTime)
	defer cancel()
	m, err := Dial(ctx, socket)
	if err != nil {
		return nil, explain(socket, err)
	}
	defer m.Close()
	list, err := m.choose(ctx, names)
	if err != nil {
		return nil, explain(socket, err)
	}
	for _, d := range list {
		if err := tidemark.CheckDiskSize(d.Size); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// explain says for the user why a machine cannot be talked to.
func explain(socket string, err error) error {
	var e *tidemark.Error
	var refused *CommandError
	switch {
	case errors.As(err, &e), errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &refused) && refused.Class == "CommandNotFound":
		return tidemark.Errorf(tidemark.Unavailable, "the QEMU of %s is too old: %w", socket, err).WithHint("QEMU 6.0 or newer is needed")
	case errors.Is(err, fs.ErrNotExist):
		return tidemark.Errorf(tidemark.NotFound, "there is no QMP socket %s", socket).WithHint("start the machine with -qmp unix:" + socket + ",server=on,wait=off")
	case errors.Is(err, fs.ErrPermission):
		return tidemark.Errorf(tidemark.Denied, "the QMP socket %s cannot be opened: permission denied", socket).WithHint("the server's user must be able to write to it")
	case errors.Is(err, syscall.ECONNREFUSED):
		return tidemark.Errorf(tidemark.Unavailable, "nobody listens on the QMP socket %s", socket).WithHint("is the machine running?")
	case errors.Is(err, context.DeadlineExceeded):
		return tidemark.Errorf(tidemark.Unavailable, "the machine at %s does not answer", socket).WithHint("it may be stopped, or wait for its storage")
	case errors.Is(err, errSilent):
		return tidemark.Errorf(tidemark.Conflict, "the QMP socket %s does not answer", socket).
			WithHint("QEMU serves one client of a socket: give the machine another, with -qmp unix:PATH,server=on,wait=off")
	case errors.Is(err, errNotQMP):
		return tidemark.Errorf(tidemark.Invalid, "%s is no QMP socket", socket).WithHint("it is what the machine was started with as -qmp unix:PATH,server=on,wait=off")
	}
	return tidemark.Errorf(tidemark.Unavailable, "the machine at %s: %w", socket, err)
}

// job is a block job.
type job struct {
	ID       string `json:"device"`
	Len      int64  `json:"len"`
	Offset   int64  `json:"offset"`
	Ready    bool   `json:"ready"`
	IOStatus string `json:"io-status"`
}

// quiet reports whether all that the guest wrote has been sent on and answered.
func (j job) quiet() bool { return j.Ready && j.Len == j.Offset }

// jobs lists the block jobs.
func (m *Monitor) jobs(ctx context.Context) (list []job, err error) {
	err = m.Run(ctx, "query-block-jobs", nil, &list)
	return list, err
}

// running reports whether the machine has a guest that runs.
func (m *Monitor) running(ctx context.Context) (bool, error) {
	var status struct {
		Running bool `json:"running"`
	}
	err := m.Run(ctx, "query-status", nil, &status)
	var refused *CommandError
	if errors.As(err, &refused) { // a storage daemon has none
		return false, nil
	}
	return status.Running, err
}

// errNotSent: the job has paused.
var errNotSent = errors.New("the machine could not send a write on")

// jobEnd is what QEMU tells when a job ends.
type jobEnd struct {
	ID    string `json:"device"`
	Error string `json:"error"`
}

// endOf returns why the job id ended, or paused, if that is what the event tells.
func endOf(e Event, id string) error {
	var end jobEnd
	told := []string{"BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR"}
	if !slices.Contains(told, e.Name) || json.Unmarshal(e.Data, &end) != nil || end.ID != id {
		return nil
	}
	switch {
	case e.Name == "BLOCK_JOB_ERROR":
		return errNotSent
	case end.Error != "":
		return fmt.Errorf("QEMU ended the mirror: %s", end.Error)
	case e.Name == "BLOCK_JOB_CANCELLED":
		return errors.New("somebody cancelled the mirror of the machine")
	}
	return errors.New("somebody ended the mirror of the machine")
}

// reachable makes a directory, or a socket, one that the machine can use: its own, if it runs as another user.
func (m *Monitor) reachable(path string) error {
	if m.uid == os.Getuid() {
		return nil
	}
	return os.Chown(path, m.uid, m.gid)
}

// answers reports whether somebody listens on a socket.
func answers(path string) bool {
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return err == nil
}
