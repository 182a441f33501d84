package postgres

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tidemark"
)

func TestPasswordsAreRefused(t *testing.T) {
	for _, conn := range []string{
		"postgres://u:s3cret@h/db", "postgresql://u:s3cret@h", "host=h password=s3cret", "postgres://h/?password=s3cret", "postgres://h/?pass%77ord=s3cret",
		"host=h PASSWORD = 's3cret'", "postgres://h/?sslpassword=s3cret",
	} {
		_, err := ParseSource(conn)
		if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), ".pgpass") {
			t.Errorf("%s: %v", conn, err)
		}
	}
}

func FuzzParseSource(f *testing.F) {
	for _, s := range []string{"", "postgres:///", "host=/tmp port=1", "postgres://u:p@h", "host='a", "postgres://[::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := ParseSource(s); err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("error of several lines: %q", err)
		}
	})
}

func FuzzParseConf(f *testing.F) {
	f.Add("a = 'b''c' # d\nport=5\ninclude 'x'\n")
	f.Fuzz(func(t *testing.T, s string) {
		for k, v := range parseConf(s) {
			back := parseConf(k + " = " + quoteConf(v))
			if strings.ContainsAny(v, "\x00\n\r") {
				continue
			}
			if back[k] != v {
				t.Errorf("%q: %q came back as %q", k, v, back[k])
			}
		}
	})
}

func TestLSN(t *testing.T) {
	for _, s := range []string{"0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"} {
		if l, err := ParseLSN(s); err != nil || l.String() != s {
			t.Errorf("%s: %s, %v", s, l, err)
		}
	}
	for _, s := range []string{"", "1", "1/", "/1", "1/2/3", "x/1", "123456789/0", "-1/0"} {
		if l, err := ParseLSN(s); err == nil {
			t.Errorf("%q: %s", s, l)
		}
	}
	const size = 16 << 20
	name := LSN(0x1_0500_0001).segment(3, size)
	if tli, seg, ok := parseSegment(name+".partial", size); name != "000000030000000100000005" || tli != 3 || seg != 0x105 || !ok {
		t.Errorf("%s: %d %d %v", name, tli, seg, ok)
	}
}

func TestCheckAndDiscover(t *testing.T) {
	c := newCluster(t, "max_replication_slots = 1")
	rep, err := Check(context.Background(), c.src, CheckOptions{})
	if err != nil || len(rep.Problems) != 0 || !rep.Checksums || rep.DataDir != c.dir || rep.Superuser != "postgres" {
		t.Fatalf("%+v, %v", rep, err)
	}
	if len(rep.Warnings) != 1 || !strings.Contains(rep.Warnings[0], "max_slot_wal_keep_size") {
		t.Errorf("warnings: %q", rep.Warnings)
	}
	if _, err := Check(context.Background(), c.src, CheckOptions{SetSlotLimit: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the limit is set", func() bool { return c.query("SHOW max_slot_wal_keep_size") == "1GB" })
	list, err := Discover(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	for _, d := range list {
		seen = seen || d.DataDir == c.dir && d.Running && d.Port == c.port && d.SocketDir == c.sock && d.OSUser == "postgres" && d.Version == 15 && d.Bytes > 1<<20
	}
	if !seen {
		t.Errorf("not discovered: %+v", list)
	}
	c.exec("SELECT pg_create_physical_replication_slot('other')")
	rep, err = Check(context.Background(), c.src, CheckOptions{})
	if err != nil || len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0], "max_replication_slots") {
		t.Errorf("no free slot: %+v, %v", rep, err)
	}
	staging := tempDir(t)
	if _, err := Capture(context.Background(), c.src, staging, CaptureOptions{}); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("capture without a slot: %v", err)
	}
	c.exec("CREATE ROLE weak LOGIN")
	c.append("pg_hba.conf", "") // unchanged; weak has no peer
	if _, err := Capture(context.Background(), Source{Conn: c.src.Conn + " user=weak"}, staging, CaptureOptions{}); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("a role that peer refuses: %v", err)
	}
	if list, _ := os.ReadDir(staging); len(list) != 0 {
		t.Errorf("refused captures left %v", list)
	}
	c.stop()
	if _, err := Capture(context.Background(), c.src, staging, CaptureOptions{}); tidemark.KindOf(err) != tidemark.Unavailable || strings.Contains(err.Error(), "\n") {
		t.Errorf("server down: %v", err)
	}
}

func TestRecoverRefuses(t *testing.T) {
	c := newCluster(t)
	staging := tempDir(t)
	mustCapture(t, c.src, staging, CaptureOptions{})
	data := filepath.Join(copyTo(t, staging), "data")
	link := filepath.Join(tempDir(t), "data") // out of the copy that it is on
	if err := os.Symlink(data, link); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]Target{
		"leads out":         {DataDir: link},
		"no data directory": {DataDir: tempDir(t)},
		"port":              {DataDir: data, Port: 70000},
		"user":              {DataDir: data, OSUser: "nobody-of-this-name"},
		"socket path":       {DataDir: data, SocketDir: "/tmp/" + strings.Repeat("x", 120)},
		"programs":          {DataDir: data, BinDir: "/nowhere"},
		"running":           {DataDir: c.dir},
	} {
		_, err := Recover(context.Background(), target)
		if err == nil || strings.Contains(err.Error(), "\n") || tidemark.KindOf(err) == tidemark.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	in := bringUp(t, Target{Name: "a", DataDir: data, Listen: "127.0.0.1"})
	other := filepath.Join(copyTo(t, staging), "data")
	if _, err := Recover(context.Background(), Target{DataDir: other, Port: in.Port}); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("port taken: %v", err)
	}
	// A damaged copy: the server's own line, and nothing runs.
	if err := os.Truncate(filepath.Join(other, "pg_xact", "0000"), 0); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(filepath.Join(other, "pg_wal"))
	if _, err := Recover(context.Background(), Target{DataDir: other}); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("damaged copy: %v", err)
	} else {
		t.Log(err)
	}
	if pid, _ := livePostmaster(other); pid != 0 {
		t.Errorf("process %d is left", pid)
	}
}

// What could reach production is gone from a clone.
func TestCloneIsIsolated(t *testing.T) {
	c := newCluster(t, "wal_level = logical", "archive_mode = on", "archive_command = 'touch /tmp/never'", "primary_conninfo = 'host=prod'",
		"shared_preload_libraries = 'pg_stat_statements'", "timezone = 'Asia/Tokyo'", "max_connections = 150")
	c.exec("SELECT pg_create_physical_replication_slot('p', true); SELECT pg_create_logical_replication_slot('l', 'pgoutput')")
	c.exec("CREATE SUBSCRIPTION s CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false, slot_name = 'prodslot'); ALTER SUBSCRIPTION s ENABLE")
	staging := tempDir(t)
	mustCapture(t, c.src, staging, CaptureOptions{})
	in := bringUp(t, Target{Name: "iso\nlated", DataDir: filepath.Join(copyTo(t, staging), "data"), Settings: map[string]string{"archive_mode": "on", "listen_addresses": "*", "work_mem": "7MB", "evil\nname": "x"}})
	for sql, want := range map[string]string{
		"SHOW archive_mode": "off", "SHOW archive_command": "(disabled)", "SHOW primary_conninfo": "", "SHOW listen_addresses": "",
		"SHOW cluster_name": "tidemark:iso_lated", "SHOW timezone": "Asia/Tokyo", "SHOW max_connections": "150", "SHOW work_mem": "7MB",
		"SHOW fsync": "on", "SHOW shared_preload_libraries": "pg_stat_statements", "SHOW max_logical_replication_workers": "0",
		"SELECT count(*)::text FROM pg_replication_slots":                                        "0",
		"SELECT count(*)::text FROM pg_subscription WHERE subenabled OR subslotname IS NOT NULL": "0",
		"SELECT timeline_id::text FROM pg_control_checkpoint()":                                  "2",
	} {
		if got := queryOn(t, in.Source(), sql); got != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
	if fi, err := os.Stat(in.SocketDir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("socket directory: %v, %v", fi.Mode(), err)
	}
	if got := c.query("SELECT count(*)::text FROM pg_replication_slots"); got != "2" {
		t.Errorf("production has %s slots", got)
	}
}

func TestStagingFull(t *testing.T) {
	c := newCluster(t)
	staging := tempDir(t)
	if err := exec.Command("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", staging).Run(); err != nil {
		need(t, false, "tmpfs mounts")
	}
	defer exec.Command("umount", staging).Run()
	_, err := Capture(context.Background(), c.src, staging, CaptureOptions{})
	if err == nil || !strings.Contains(err.Error(), syscall.ENOSPC.Error()) || !readState(staging).Dirty {
		t.Fatalf("full: %v", err)
	}
	if out, err := exec.Command("mount", "-o", "remount,size=500m", staging).CombinedOutput(); err != nil {
		t.Fatalf("remount: %s", out)
	}
	mustCapture(t, c.src, staging, CaptureOptions{})
	bringUp(t, Target{Name: "full", DataDir: filepath.Join(copyTo(t, staging), "data")})
}
