package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"tidemark"
	"tidemark/client"
)

const (
	fromHost = "tidemark"
	// thinRate is 20 Mbit/s in bytes, thinDelay half of the 80 ms of a round trip.
	thinRate  = 20e6 / 8
	thinDelay = 40 * time.Millisecond
)

// benchThinLink captures trees and a database of another host over 20 Mbit/s and 80 ms.
func benchThinLink(ctx context.Context, e *env, r *Result) error {
	p, err := e.product(ctx, e.disk+"/data", "--listen", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := p.start(); err != nil {
		return err
	}
	defer p.kill()
	s, err := p.Status(ctx)
	if err != nil {
		return err
	}
	l, err := newLink(s.Agents, thinRate, thinDelay)
	if err != nil {
		return err
	}
	defer l.close()
	end, err := e.thinHost(ctx, p, l)
	if err != nil {
		return err
	}
	defer end()
	defer func() { // their staging disks are mounted here
		for _, name := range []string{"tree", "copy", "cluster"} {
			_ = p.Unprotect(context.Background(), name) // one that is not there was not made
		}
	}()
	if err := e.thinTree(ctx, r, p, l); err != nil {
		return err
	}
	if err := e.thinCluster(ctx, r, p, l); err != nil {
		return err
	}
	rowsThinLink(r)
	r.note("The link is a relay of this benchmark between agent and server on one machine: a token bucket of 20 Mbit/s and 40 ms in each direction. It is above TCP, so slow start and lost packets are not in it. Shipped is all that went through the relay towards the server, TLS included; stored is what the capture added to the pool and the journal. What of the log of the cluster, which is received between captures, is still on its way when a capture begins, is in both.")
	return nil
}

// thinHost has the agent of another host join by way of the link.
func (e *env) thinHost(ctx context.Context, p *product, l *link) (end func(), err error) {
	inv, err := p.AddHost(ctx, tidemark.HostSpec{Name: "far"})
	if err != nil {
		return nil, err
	}
	token := e.disk + "/token"
	if err := os.WriteFile(token, []byte(inv.Token), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(p.binary, "agent", "--server", l.address(), "--token-file", token, "--data", e.disk+"/agent")
	cmd.Stderr = os.Stderr
	ended, err := startTied(cmd)
	if err != nil {
		return nil, err
	}
	end = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	}
	for until := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		hosts, err := client.Collect(p.Hosts(ctx))
		if err == nil && len(hosts) == 1 && hosts[0].State == tidemark.HostConnected {
			return end, nil
		}
		if err != nil || time.Now().After(until) {
			end()
			return nil, errors.Join(err, errors.New("the agent does not connect"))
		}
	}
}

// protected makes something an application.
func (p *product) protected(ctx context.Context, spec tidemark.ProtectSpec) error {
	j, err := p.Protect(ctx, spec)
	_, err = client.Result[tidemark.Application](ctx, p.Client, j, err, nil)
	return err
}

// thinCapture captures an application once, and notes what that took.
func (e *env) thinCapture(ctx context.Context, r *Result, p *product, l *link, name, what string, round int) error {
	up, down, began := l.up.bytes.Load(), l.down.bytes.Load(), time.Now()
	j, err := p.Capture(ctx, tidemark.CaptureSpec{Application: name})
	c, err := client.Result[tidemark.CaptureResult](ctx, p.Client, j, err, nil)
	if err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	shipped := float64(l.up.bytes.Load() - up)
	r.add(Sample{fromHost, what, round, map[string]float64{"s": took, "shipped": shipped, "asked": float64(l.down.bytes.Load() - down), "stored": float64(c.StoredBytes),
		"changed": float64(c.ChangedBytes), "use": shipped / took / thinRate, "ratio": shipped / float64(c.StoredBytes)}})
	return nil
}

// thinTree captures a tree of many small files and some large ones, half of which can be compressed; again after some of it has changed; and a last time when nothing has.
func (e *env) thinTree(ctx context.Context, r *Result, p *product, l *link) error {
	root := e.disk + "/tree"
	count := e.size(4000, 400)
	rng := rand.New(rand.NewPCG(1, 2))
	write := func(i int64, size int) error {
		data := make([]byte, size)
		for j := range data {
			if j/2048%2 == 0 { // half of it is noise, the other half text of a kind
				data[j] = byte(rng.Uint32())
			} else {
				data[j] = "a line of text, and another "[rng.IntN(28)]
			}
		}
		path := fmt.Sprintf("%s/d%d/f%d", root, i%50, i)
		return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644))
	}
	for i := range count {
		size := 2000 + rng.IntN(12_000)
		if i%200 == 0 {
			size = 2 << 20
		}
		if err := write(i, size); err != nil {
			return err
		}
	}
	if err := p.protected(ctx, tidemark.ProtectSpec{Name: "tree", Source: root, Host: "far"}); err != nil {
		return err
	}
	if err := e.thinCapture(ctx, r, p, l, "tree", "tree, full", 0); err != nil {
		return err
	}
	time.Sleep(6 * time.Second) // so that dates prove something
	for i := int64(0); i < count; i += 40 {
		if err := write(i+1, 2000+rng.IntN(12_000)); err != nil {
			return err
		}
	}
	if err := e.thinCapture(ctx, r, p, l, "tree", "tree, again", 0); err != nil {
		return err
	}
	time.Sleep(6 * time.Second)
	if err := e.thinCapture(ctx, r, p, l, "tree", "tree, unchanged", 0); err != nil {
		return err
	}
	return e.thinKnown(ctx, r, p, l, root)
}

// thinKnown captures what is staged of the host already: the same tree with its directories renamed, and a copy of it as an application of its own.
func (e *env) thinKnown(ctx context.Context, r *Result, p *product, l *link, root string) error {
	if out, err := exec.CommandContext(ctx, "cp", "-a", root, e.disk+"/copy").CombinedOutput(); err != nil {
		return fmt.Errorf("copy the tree: %s: %w", out, err)
	}
	for i := range 50 {
		if err := os.Rename(fmt.Sprintf("%s/d%d", root, i), fmt.Sprintf("%s/renamed%d", root, i)); err != nil {
			return err
		}
	}
	if err := e.thinCapture(ctx, r, p, l, "tree", "tree, renamed", 0); err != nil {
		return err
	}
	if err := p.protected(ctx, tidemark.ProtectSpec{Name: "copy", Source: e.disk + "/copy", Host: "far"}); err != nil {
		return err
	}
	return e.thinCapture(ctx, r, p, l, "copy", "tree, copied", 0)
}

// thinCluster captures a running database, and again after some transactions.
func (e *env) thinCluster(ctx context.Context, r *Result, p *product, l *link) error {
	scale, transactions := 20, 1600
	if e.quick {
		scale, transactions = 4, 200
	}
	home := e.disk + "/src"
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	c, err := newCluster(ctx, home, scale)
	if err != nil {
		return err
	}
	defer c.stop(stopAtOnce)
	if err := p.protected(ctx, tidemark.ProtectSpec{Name: "cluster", Source: c.conn(), Host: "far"}); err != nil {
		return err
	}
	if err := e.thinCapture(ctx, r, p, l, "cluster", "cluster, full", 0); err != nil {
		return err
	}
	for round := range min(e.rounds, 3) {
		time.Sleep(6 * time.Second)
		if err := c.change(ctx, transactions); err != nil {
			return err
		}
		if err := e.thinCapture(ctx, r, p, l, "cluster", "cluster, again", round); err != nil {
			return err
		}
	}
	return nil
}

func rowsThinLink(r *Result) {
	for _, what := range []string{"tree, full", "cluster, full"} {
		v := func(unit string) float64 { return r.median(fromHost, what, unit) }
		r.row("share of the link that a capture uses: "+what, v("use"), "x", atLeast(0.8), atLeast(0.9),
			"%s MB in %s s, from the command to the bookmark", number(v("shipped")/1e6), number(v("s")))
	}
	for _, what := range []string{"tree, full", "tree, again", "cluster, full", "cluster, again"} {
		v := func(unit string) float64 { return r.median(fromHost, what, unit) }
		r.row("shipped ÷ stored: "+what, v("ratio"), "x", atMost(1.1), atMost(1),
			"%s MB shipped, %s MB stored; %s MB changed at a grain of 4 KiB; %s MB went the other way", number(v("shipped")/1e6), number(v("stored")/1e6), number(v("changed")/1e6), number(v("asked")/1e6))
	}
	for _, what := range []string{"tree, renamed", "tree, copied"} {
		v := func(unit string) float64 { return r.median(fromHost, what, unit) }
		r.row("shipped ÷ staged anew, of what the host has elsewhere: "+what, v("shipped")/v("changed"), "x", atMost(0.1), atMost(0.1),
			"%s MB of %s MB, %s MB stored, in %s s", number(v("shipped")/1e6), number(v("changed")/1e6), number(v("stored")/1e6), number(v("s")))
	}
	r.row("a capture of a tree in which nothing changed", r.median(fromHost, "tree, unchanged", "s"), "s", Bound{}, Bound{}, "%s kB shipped", number(r.median(fromHost, "tree, unchanged", "shipped")/1e3))
}
