package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"tidemark/capture/qemu"
)

// doMachine starts and ends what stands for a virtual machine: QEMU's storage daemon, which has the block layer of one.
func doMachine(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: machine start|kill|clean")
	}
	s := stageOf(ts)
	switch args[0] {
	case "start":
		ts.Check(s.startMachine(ts))
	case "kill":
		s.endMachine()
	case "clean":
		left, err := leftInMachine(ts.MkAbs("second.sock"))
		ts.Check(err)
		if left != "" {
			ts.Fatalf("the machine has left of us: %s", left)
		}
	default:
		ts.Fatalf("machine cannot %s", args[0])
	}
}

func (s *stage) endMachine() {
	if s.machine != nil {
		s.machine.Process.Kill()
		s.machine.Wait()
		s.machine = nil
	}
}

func (s *stage) startMachine(ts *testscript.TestScript) error {
	args := []string{"--nbd-server", "addr.type=unix,addr.path=" + ts.MkAbs("nbd.sock")}
	for _, name := range []string{"disk0", "disk1"} {
		image := ts.MkAbs(name + ".img")
		f, err := os.OpenFile(image, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if err := f.Truncate(16 << 20); err != nil {
			return err
		}
		f.Close()
		args = append(args, "--blockdev", "file,discard=unmap,node-name=file-"+name+",filename="+image,
			"--blockdev", "raw,discard=unmap,node-name="+name+",file=file-"+name,
			"--export", "nbd,writable=on,id="+name+",name="+name+",node-name="+name)
	}
	for _, name := range []string{"qmp", "second"} {
		path := ts.MkAbs(name + ".sock")
		os.Remove(path)
		args = append(args, "--chardev", "socket,server=on,wait=off,id="+name+",path="+path, "--monitor", "chardev="+name)
	}
	s.machine = exec.Command("qemu-storage-daemon", args...)
	s.machine.Stderr = os.Stderr
	if err := s.machine.Start(); err != nil {
		return err
	}
	for range 500 {
		if c, err := net.Dial("unix", ts.MkAbs("second.sock")); err == nil {
			return c.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("the machine does not start")
}

// leftInMachine finds what has a name of ours in a machine.
func leftInMachine(socket string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	q, err := qemu.Dial(ctx, socket)
	if err != nil {
		return "", err
	}
	defer q.Close()
	for _, ask := range []string{"query-named-block-nodes", "query-block-jobs", "query-block-exports"} {
		var all []json.RawMessage
		if err := q.Run(ctx, ask, nil, &all); err != nil {
			return "", err
		}
		for _, x := range all {
			if strings.Contains(string(x), "tidemark-") {
				return string(x), nil
			}
		}
	}
	return "", nil
}
