package proof

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"tidemark"
	"tidemark/app/postgres"
	"tidemark/mount"
)

// mounted is where the file system of a disk is mounted.
func mounted(disk string) string { return filepath.Join(disksDir, disk) }

// node is the device of a disk in the sandbox.
func node(disk string) string { return filepath.Join(nodesDir, disk) }

// mountOptions of what is on a disk that nobody vouches for.
var mountOptions = []string{"noatime", "nodev", "nosuid"}

// mountAt mounts the file system of a device, whose journal is replayed by that.
func mountAt(device, dir, fstype string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return &troubleError{err}
	}
	return mount.MountFS(device, dir, fstype, mountOptions)
}

// provePostgres brings a database up, and checks it.
func (b *box) provePostgres() error {
	t, err := b.target()
	if err != nil {
		return err
	}
	b.step("recover")
	in, err := postgres.Recover(b.ctx, t)
	if err != nil {
		b.sayFile(filepath.Join(t.DataDir, "tidemark.log"))
		if tidemark.KindOf(err) == tidemark.Unavailable && isProgramless(t) {
			return &troubleError{err}
		}
		return fmt.Errorf("it did not come up: %w", err)
	}
	if _, err := in.Probe(b.ctx, false); err != nil {
		return fmt.Errorf("it came up, and does not answer: %w", err)
	}
	b.answered()
	b.step("check")
	if in, err = b.checkDatabase(in, t); err != nil {
		return err
	}
	if b.spec.Probe == nil || b.reason != "" {
		return nil
	}
	b.step("probe")
	return b.probeDatabase(in)
}

// isProgramless reports whether the host has no programs for a data directory.
func isProgramless(t postgres.Target) bool {
	_, err := postgres.Programs(t.DataDir)
	return err != nil
}

// target mounts the disks of a database, and says what is to be brought up.
func (b *box) target() (t postgres.Target, err error) {
	data := b.spec.Data
	root := mounted(data.Disk)
	if err := mountAt(node(data.Disk), root, ""); err != nil {
		return t, err
	}
	if data.Dir == "" {
		if data.Dir, err = postgres.FindDataDir(root); err != nil {
			return t, err
		}
	}
	t = postgres.Target{Name: b.spec.Name, DataDir: filepath.Join(root, data.Dir), Root: root, Stop: b.spec.Stop, SocketDir: filepath.Join(runDir, "pg"), Port: 5432}
	if l := b.spec.Log; l != nil {
		if err := mountAt(node(l.Disk), mounted(l.Disk), ""); err != nil {
			return t, err
		}
		t.WALDir = filepath.Join(mounted(l.Disk), l.Dir)
	}
	return t, nil
}

// checkDatabase makes all checks of a database, and returns it as it runs then: to compare pages with their checksums it has to be down.
func (b *box) checkDatabase(in *postgres.Instance, t postgres.Target) (*postgres.Instance, error) {
	var names []string
	err := b.check("databases", func() (_ string, err error) {
		names, err = in.Databases(b.ctx)
		return fmt.Sprintf("%d take connections and answer", len(names)), err
	})
	if err != nil {
		return in, err
	}
	err = b.check("pg_amcheck", func() (string, error) {
		err := in.Amcheck(b.ctx, b.spec.Deep, b)
		if errors.Is(err, postgres.ErrNoAmcheck) {
			return "", skipped(err.Error())
		}
		if b.spec.Deep {
			return "tables and B-tree indexes, and every row in every index", err
		}
		return "tables and B-tree indexes", err
	})
	if err != nil {
		return in, err
	}
	for _, name := range names {
		if err := b.check("pg_dump "+name, func() (string, error) { return "all definitions", in.DumpSchema(b.ctx, name, b) }); err != nil {
			return in, err
		}
	}
	return b.checkPages(in, t)
}

// checkPages compares all pages with their checksums, where they have some. The database is down meanwhile, and up again afterwards if somebody wants it.
func (b *box) checkPages(in *postgres.Instance, t postgres.Target) (*postgres.Instance, error) {
	has, err := postgres.HasChecksums(b.ctx, in.DataDir)
	if err != nil {
		return in, err
	}
	if !has {
		return in, b.check("pg_checksums", func() (string, error) { return "", skipped("the pages carry no checksums") })
	}
	if err := in.Stop(b.ctx); err != nil {
		return in, fmt.Errorf("it does not stop: %w", err)
	}
	if err := b.check("pg_checksums", func() (string, error) { return "all pages", postgres.VerifyChecksums(b.ctx, in.DataDir, b) }); err != nil {
		return in, err
	}
	if b.spec.Probe == nil {
		return in, nil
	}
	t.Stop = postgres.Stop{}
	if in, err = postgres.Recover(b.ctx, t); err != nil {
		return in, fmt.Errorf("it did not come up again: %w", err)
	}
	return in, nil
}

// sayFile adds a file's end to the output.
func (b *box) sayFile(name string) {
	text, err := os.ReadFile(name)
	if err != nil {
		return // it was not made yet
	}
	fmt.Fprintf(b, "== %s\n%s", filepath.Base(name), text[max(0, len(text)-mostOutput):])
}
