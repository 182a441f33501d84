package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"tidemark/app/delta"
)

// breaking is a connection that breaks when so many bytes were read from it.
type breaking struct {
	net.Conn
	left atomic.Int64
}

func (c *breaking) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.left.Add(-int64(n)) < 0 {
		c.Conn.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// ship captures a cluster over a connection, which breaks when cut bytes have come; 0: it does not.
func ship(t testing.TB, src Source, staging string, cut int64) (st delta.Stats, r CaptureResult, err error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := make(chan error, 1)
	go func() {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			sent <- err
			return
		}
		b, err := OpenBackup(context.Background(), src)
		if err != nil {
			conn.Close()
			sent <- err
			return
		}
		sent <- errors.Join(delta.Send(context.Background(), conn, b), b.Close())
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if cut > 0 {
		c := &breaking{Conn: conn}
		c.left.Store(cut)
		conn = c
	}
	st, err = delta.Receive(context.Background(), conn, staging, delta.Options{Tops: Tops, Margin: 50 * time.Millisecond}, func(st delta.Stats) error {
		if err := json.Unmarshal(st.Result, &r); err != nil {
			return err
		}
		return NoteStaged(staging, &r)
	})
	if serr := <-sent; err == nil && serr != nil {
		t.Fatalf("staged, and the sender says %v", serr)
	}
	return st, r, err
}

// A cluster is sent again and again under load, with cuts in between; every copy recovers, holds what was committed before, and keeps the sums.
func TestShipUnderLoadAndRecover(t *testing.T) {
	c := newCluster(t)
	c.run("pgbench", "-i", "-q", "-s", "1", "postgres")
	space := filepath.Join(filepath.Dir(c.dir), "space")
	c.mkdir(space)
	c.exec("CREATE TABLESPACE extra LOCATION '" + space + "'")
	c.exec("CREATE TABLE there (i int) TABLESPACE extra; INSERT INTO there SELECT generate_series(1, 5000)")
	staging := tempDir(t)
	load := c.command("pgbench", "-n", "-c", "2", "-T", "120", "postgres")
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { load.Process.Kill(); load.Wait() }()
	for i := range 3 {
		time.Sleep(300 * time.Millisecond)
		c.exec("CREATE TABLE gone AS SELECT generate_series(1, 20000) g")
		before := c.query("SELECT count(*)::text FROM pgbench_history")
		if st, _, err := ship(t, c.src, staging, 1+rand.Int64N(3<<20)); err != nil && !errors.Is(err, delta.ErrLost) {
			t.Fatalf("%+v %v", st, err)
		}
		for range 100 { // the server ends the slot of a session a moment after that
			if c.query("SELECT count(*)::text FROM pg_replication_slots") == "0" {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if _, _, err := ship(t, c.src, staging, 0); err != nil {
			t.Fatal(err)
		}
		st, r, err := ship(t, c.src, staging, 0)
		if err != nil || st.Skipped < st.Files/4 || st.Rescan != "" {
			t.Fatalf("capture %d: %+v %v", i, st, err)
		}
		t.Logf("%d of %d files skipped, %d bytes changed, %d shipped, to %s", st.Skipped, st.Files, st.ChangedBytes, st.Shipped, r.StopLSN)
		c.exec("DROP TABLE gone")
		clone := copyTo(t, staging)
		in := bringUp(t, Target{Name: "load", DataDir: filepath.Join(clone, "data")})
		balanced(t, in.Source())
		if got := queryOn(t, in.Source(), "SELECT (count(*) >= "+before+")::text FROM pgbench_history"); got != "true" {
			t.Errorf("the clone lacks transactions committed before the capture")
		}
		if got := queryOn(t, in.Source(), "SELECT (SELECT count(*) FROM gone) || ' ' || (SELECT count(*) FROM there)"); got != "20000 5000" {
			t.Errorf("tables hold %s rows", got)
		}
		if _, err := in.Probe(context.Background(), true); err != nil { // pg_amcheck is part of it
			t.Error(err)
		}
		if err := in.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(staging, "data", "pg_replslot")); err != nil || len(left) > 0 {
		t.Errorf("slots of the cluster were staged: %v %v", left, err)
	}
}
