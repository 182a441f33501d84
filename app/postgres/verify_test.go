package postgres

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tidemark"
)

// What PostgreSQL's own programs say of a server, also of a database whose name could be taken for something else.
func TestVerify(t *testing.T) {
	c := newCluster(t)
	in := (&Instance{Name: "x", DataDir: c.dir, SocketDir: c.sock, Port: c.port, Superuser: "postgres"}).complete()
	const odd = `o'd d\b host=nowhere`
	c.exec(`CREATE DATABASE "` + odd + `"`)
	names, err := in.Databases(t.Context())
	if err != nil || !slices.Contains(names, odd) || !slices.Contains(names, "postgres") || slices.Contains(names, "template0") {
		t.Errorf("%q, %v", names, err)
	}
	var said strings.Builder
	for _, name := range names {
		if err := in.DumpSchema(t.Context(), name, &said); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := in.DumpSchema(t.Context(), "missing", &said); err == nil || !strings.Contains(said.String(), `database "missing" does not exist`) {
		t.Errorf("a database that is not there: %v; %s", err, said.String())
	}
	if err := in.Amcheck(t.Context(), true, &said); err != nil {
		t.Errorf("%v; %s", err, said.String())
	}
	c.exec("CREATE TABLE h AS SELECT generate_series(1, 1000) i")
	file := c.query("SELECT pg_relation_filepath('h')")
	c.cmd.Process.Signal(syscall.SIGINT) // pages are compared of a server that was stopped in order
	c.cmd.Wait()
	c.cmd = nil
	if has, err := HasChecksums(t.Context(), c.dir); err != nil || !has {
		t.Fatal(has, err)
	}
	if err := VerifyChecksums(t.Context(), c.dir, &said); err != nil {
		t.Errorf("%v; %s", err, said.String())
	}
	f, err := os.OpenFile(filepath.Join(c.dir, file), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damage"), 5000); err != nil {
		t.Fatal(err)
	}
	if err := VerifyChecksums(t.Context(), c.dir, &said); tidemark.KindOf(err) != tidemark.Corrupt || !strings.Contains(err.Error(), file) {
		t.Errorf("a damaged page: %v", err)
	}
}

// Every statement must succeed, and the last one return true where it returns a boolean.
func TestRunSQL(t *testing.T) {
	c := newCluster(t)
	in := (&Instance{Name: "x", DataDir: c.dir, SocketDir: c.sock, Port: c.port, Superuser: "postgres"}).complete()
	for _, x := range []struct{ text, want string }{
		{"create table a (i int); insert into a values (1); select true", ""},
		{"select i from a; select count(*) from a", ""},
		{"-- nothing", ""},
		{"select true where false", "of 0 rows, 0 are not"},
		{"select b from (values (true), (false), (null)) v (b)", "of 3 rows, 2 are not"},
		{"select false; select true", ""},
		{"select true; select 1/0; select true", "division by zero"},
		{"insert into a values (2); selec", "syntax error"},
		{"select count(*) = 1 from a", ""}, // a script is one transaction
	} {
		var said strings.Builder
		err := in.RunSQL(t.Context(), "postgres", x.text, &said)
		if (err == nil) != (x.want == "") || err != nil && !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v; %s", x.text, err, said.String())
		}
	}
}
