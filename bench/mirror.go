package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	monitor "tidemark/capture/qemu"
	"tidemark/mount"
)

const (
	unmirrored = "qemu-storage-daemon, FUSE + loop"
	mirrored   = "the same with blockdev-mirror"
)

// qemuProductions shows two disks that qemu-storage-daemon serves, in the way in which ours are shown, and has it mirror one of them.
func (e *env) qemuProductions(ctx context.Context, images map[string]string) (list []*production, err error) {
	for _, side := range []string{unmirrored, mirrored} {
		x, err := e.qemuProduction(ctx, side, images[side], fmt.Sprintf("%s/qsd%d", e.disk, len(list)))
		if err != nil {
			return list, err
		}
		list = append(list, x)
	}
	return list, nil
}

func (e *env) qemuProduction(ctx context.Context, side, image, at string) (x *production, err error) {
	cmd := exec.Command("qemu-storage-daemon", "--blockdev", "driver=file,node-name=f,filename="+image,
		"--nbd-server", "addr.type=unix,addr.path="+at+".sock", "--export", "type=nbd,id=e,node-name=f,name=0,writable=on",
		"--chardev", "socket,id=qmp,path="+at+".qmp,server=on,wait=off", "--monitor", "chardev=qmp")
	cmd.Stderr = os.Stderr
	ended, err := startTied(cmd)
	if err != nil {
		return nil, err
	}
	undo := []func() error{func() error {
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		return nil
	}}
	x = &production{side: side, image: image, undo: func() (err error) {
		for _, fn := range slices.Backward(undo) {
			err = errors.Join(err, fn())
		}
		return err
	}}
	defer func() {
		if err != nil {
			x.undo()
		}
	}()
	for _, name := range []string{at + ".sock", at + ".qmp"} {
		if err := appears(ctx, name); err != nil {
			return nil, err
		}
	}
	a, err := e.launcher.Attach(ctx, mount.Config{Name: filepath.Base(at), StateDir: e.disk + "/attached", Socket: at + ".sock", Export: "0"})
	if err != nil {
		return nil, err
	}
	x.device, undo = a.Device(), append(undo, func() error { return a.Detach(context.Background(), true) })
	if side == mirrored {
		end, err := e.mirrorQSD(ctx, at+".qmp")
		if err != nil {
			return nil, err
		}
		undo = append(undo, end)
	}
	return x, nil
}

// appears waits for a file.
func appears(ctx context.Context, name string) error {
	for range 500 {
		if _, err := os.Stat(name); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s does not appear", name)
}

// mirrorQSD has a qemu-storage-daemon mirror its disk f to a new file, with each write done when both have it, and waits until
// both are the same.
func (e *env) mirrorQSD(ctx context.Context, qmp string) (end func() error, err error) {
	target := e.disk + "/mirror.img"
	if err := sparseFile(target, productionSize); err != nil {
		return nil, err
	}
	m, err := monitor.Dial(ctx, qmp)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	node := map[string]any{"driver": "file", "node-name": "t", "filename": target}
	if err := m.Run(ctx, "blockdev-add", node, nil); err != nil {
		return nil, err
	}
	job := map[string]any{"job-id": "mirror", "device": "f", "target": "t", "sync": "full", "copy-mode": "write-blocking"}
	if err := m.Run(ctx, "blockdev-mirror", job, nil); err != nil {
		return nil, err
	}
	for {
		var jobs []struct {
			Ready bool   `json:"ready"`
			Error string `json:"error"`
		}
		if err := m.Run(ctx, "query-block-jobs", nil, &jobs); err != nil {
			return nil, err
		}
		if len(jobs) != 1 || jobs[0].Error != "" {
			return nil, fmt.Errorf("the mirror of QEMU is not there: %+v", jobs)
		}
		if jobs[0].Ready {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return func() error {
		return errors.Join(m.Run(context.Background(), "block-job-cancel", map[string]any{"device": "mirror"}, nil), m.Close())
	}, nil
}

// rowsMirror compare the tap with QEMU's mirror, each with its own way without.
func rowsMirror(r *Result) {
	ours, theirs := r.ratio(tapped, through, "pgbench", "tps"), r.ratio(mirrored, unmirrored, "pgbench", "tps")
	tps := func(side string) string { return number(r.median(side, "pgbench", "tps")) }
	r.row("pgbench through a mirror of QEMU ÷ qemu-storage-daemon without", theirs, "x", Bound{}, Bound{},
		"%s against %s transactions/s; blockdev-mirror with copy-mode=write-blocking to a file. It has the present alone, no point of the past; ours ÷ that %s", tps(mirrored), tps(unmirrored), number(ours/theirs))
	r.row("pgbench through the tap ÷ through a mirror of QEMU", r.ratio(tapped, mirrored, "pgbench", "tps"), "x", Bound{}, Bound{},
		"%s against %s transactions/s", tps(tapped), tps(mirrored))
}
