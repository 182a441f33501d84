package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

// Tablespace is a directory of a cluster's data outside of its data directory.
type Tablespace struct {
	OID  uint32 `json:"oid"`
	Path string `json:"path"`
}

// Cluster is a PostgreSQL cluster found on this host.
type Cluster struct {
	Name        string       `json:"name"`    // as Debian names it, "15/main", or the data directory
	Version     int          `json:"version"` // major
	DataDir     string       `json:"dataDir"`
	ConfigDir   string       `json:"configDir,omitempty"` // if outside of DataDir
	Port        int          `json:"port,omitempty"`
	SocketDir   string       `json:"socketDir,omitempty"`
	Running     bool         `json:"running"`
	PID         int          `json:"pid,omitempty"`
	OSUser      string       `json:"osUser"`
	Tablespaces []Tablespace `json:"tablespaces,omitempty"`
	Bytes       int64        `json:"bytes"` // of all its files, as allocated
	// Conn is a connection string for it, if it runs and has a socket.
	Conn string `json:"conn,omitempty"`
}

// debianConf is where Debian keeps the configuration of clusters: VERSION/NAME.
const debianConf = "/etc/postgresql"

// Discover returns the clusters of this host, ordered by data directory: those
// that run, and the stopped ones that Debian's configuration names. What may not
// be read is left out. Clones that Tidemark runs are not listed.
func Discover(ctx context.Context) ([]Cluster, error) {
	found := map[string]*Cluster{}
	if err := stopped(found); err != nil {
		return nil, err
	}
	running(found)
	list := make([]Cluster, 0, len(found))
	for _, c := range found {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c.measure(ctx)
		list = append(list, *c)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].DataDir < list[j].DataDir })
	return list, nil
}

// stopped adds what Debian's configuration names.
func stopped(found map[string]*Cluster) error {
	confs, err := filepath.Glob(filepath.Join(debianConf, "*", "*", "postgresql.conf"))
	if err != nil {
		return err
	}
	for _, path := range confs {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		conf, dir := parseConf(string(text)), filepath.Dir(path)
		c := &Cluster{Name: filepath.Base(filepath.Dir(dir)) + "/" + filepath.Base(dir), ConfigDir: dir, DataDir: conf["data_directory"], SocketDir: conf["unix_socket_directories"]}
		if c.Port, err = strconv.Atoi(conf["port"]); err != nil {
			c.Port = 5432
		}
		c.SocketDir, _, _ = strings.Cut(c.SocketDir, ",")
		c.add(found)
	}
	return nil
}

// running adds the servers of the process table: a process whose working
// directory has a pid file that names it.
func running(found map[string]*Cluster) {
	for _, server := range servers() {
		dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", server))
		if err != nil {
			continue
		}
		pid, lines := livePostmaster(dir)
		if pid != server || isClone(dir) {
			continue
		}
		c := &Cluster{Name: dir, DataDir: dir}
		if old := found[dir]; old != nil {
			c = old
		}
		c.Running, c.PID, c.SocketDir = true, pid, lines[4]
		if port, err := strconv.Atoi(lines[3]); err == nil {
			c.Port = port
		}
		if c.SocketDir != "" {
			c.Conn = "host=" + quoteWord(c.SocketDir) + " port=" + strconv.Itoa(c.Port)
		}
		c.add(found)
	}
}

func isClone(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, "postgresql.conf"))
	return err == nil && strings.HasPrefix(string(text), confMark)
}

// add completes a cluster from its data directory and lists it, if it is one.
func (c *Cluster) add(found map[string]*Cluster) {
	dir, err := filepath.EvalSymlinks(c.DataDir)
	if err != nil {
		return
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return
	}
	text, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		return
	}
	if c.Version, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return // 9.6 and older
	}
	c.DataDir = dir
	uid := strconv.Itoa(int(fi.Sys().(*syscall.Stat_t).Uid))
	if u, err := user.LookupId(uid); err == nil {
		c.OSUser = u.Username
	}
	found[dir] = c
}

// measure finds the tablespaces and adds up the files.
func (c *Cluster) measure(ctx context.Context) {
	dirs := []string{c.DataDir}
	links, err := os.ReadDir(filepath.Join(c.DataDir, "pg_tblspc"))
	if err == nil {
		c.Tablespaces = nil
		for _, e := range links {
			target, err1 := filepath.EvalSymlinks(filepath.Join(c.DataDir, "pg_tblspc", e.Name()))
			oid, err2 := strconv.ParseUint(e.Name(), 10, 32)
			if errors.Join(err1, err2) == nil {
				c.Tablespaces = append(c.Tablespaces, Tablespace{uint32(oid), target})
				dirs = append(dirs, target)
			}
		}
	}
	for _, dir := range dirs {
		// Files come and go; the sum is for orientation.
		_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return ctx.Err()
			}
			if fi, err := e.Info(); err == nil {
				c.Bytes += fi.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return nil
		})
	}
}
