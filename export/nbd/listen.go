package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// defaultPort is the port IANA gave to NBD.
const defaultPort = "10809"

// Listen opens a socket at addr: "unix:/PATH", which only this user can connect
// to (mode 0600), or "tcp:HOST:PORT", where PORT may be left out (10809) or 0
// (any). A socket file that nobody serves any more is replaced; if somebody
// does, the error wraps [ErrAddressInUse]. Closing the listener removes the file.
// A place that is not the caller's own is for [ListenAnywhere].
func Listen(addr string) (net.Listener, error) {
	return listen(addr, func(string, os.FileInfo) bool { return true })
}

// ListenAnywhere is Listen at an address that somebody has asked for. A socket
// file is replaced only if it is surely one that this user left; else the error
// wraps [ErrAddressInUse], too.
func ListenAnywhere(addr string) (net.Listener, error) { return listen(addr, ours) }

// listen is Listen, with what says of a socket that nobody serves whether it may be replaced.
func listen(addr string, replaced func(path string, st os.FileInfo) bool) (net.Listener, error) {
	network, place, err := splitAddr(addr)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	if network == "unix" {
		if err := removeStale(place, replaced); err != nil {
			return nil, err
		}
		// The mode of a bound socket is that of the unbound one: set before
		// bind there is no moment at which others could connect.
		lc.Control = func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) })
			return errors.Join(cerr, err)
		}
	}
	l, err := lc.Listen(context.Background(), network, place)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// splitAddr returns the network of an address ("unix" or "tcp") and its place there.
func splitAddr(addr string) (network, place string, err error) {
	network, place, _ = strings.Cut(addr, ":")
	switch {
	case network == "unix" && strings.HasPrefix(place, "/") && !strings.ContainsRune(place, 0):
		return network, place, nil
	case network == "tcp" && place != "":
		if _, _, err := net.SplitHostPort(place); err != nil {
			place = net.JoinHostPort(strings.Trim(place, "[]"), defaultPort)
		}
		host, _, err := net.SplitHostPort(place)
		if err == nil && (net.ParseIP(host) != nil || !strings.Contains(host, ":")) {
			return network, place, nil
		}
	}
	return "", "", fmt.Errorf("%w: %q", ErrBadAddress, addr)
}

// removeStale removes a socket at path that nobody answers on, if it may be
// replaced. Anything else that is there is left alone, for bind to complain of.
func removeStale(path string, replaced func(string, os.FileInfo) bool) error {
	st, err := os.Lstat(path)
	if err != nil || st.Mode()&os.ModeSocket == 0 {
		return nil
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		return errors.Join(fmt.Errorf("%w: %s", ErrAddressInUse, path), c.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w: %s: %w", ErrAddressInUse, path, err)
	}
	if !replaced(path, st) {
		return fmt.Errorf("%w: nobody serves the socket %s, and it may be another user's", ErrAddressInUse, path)
	}
	return os.Remove(path)
}

// ours reports whether a file at path is surely one of this user: it belongs to
// him, and lies where nobody else can have moved it to.
func ours(path string, st os.FileInfo) bool {
	dir, err := os.Stat(filepath.Dir(path))
	return err == nil && owned(st) && kept(dir)
}

// owned reports whether a file belongs to this user.
func owned(st os.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Geteuid()
}

// kept reports whether nobody but root and this user can replace what they have
// in a directory: it is theirs, and only they, or the group that this user is
// in for himself, may write to it; or it keeps what each has there, as /tmp does.
func kept(dir os.FileInfo) bool {
	sys, ok := dir.Sys().(*syscall.Stat_t)
	if !ok || sys.Uid != 0 && !owned(dir) {
		return false
	}
	mode := dir.Mode()
	return mode&os.ModeSticky != 0 || mode&0o002 == 0 && (mode&0o020 == 0 || int(sys.Gid) == os.Getegid())
}

// URI returns how a client reaches an export through a socket that was opened
// by [Listen] with addr, by the NBD URI specification; tls asks for TLS. A
// wildcard host becomes localhost. It returns "" for an address Listen refuses.
func URI(addr, export string, tls bool) string {
	network, place, err := splitAddr(addr)
	if err != nil {
		return ""
	}
	scheme := "nbd"
	if tls {
		scheme = "nbds"
	}
	if network == "unix" {
		return scheme + "+unix:///" + escape(export) + "?socket=" + escape(place)
	}
	host, port, _ := net.SplitHostPort(place)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return scheme + "://" + net.JoinHostPort(host, port) + "/" + escape(export)
}

// escape percent-encodes everything but unreserved characters and slashes. The
// rules of HTML forms (a plus for a space) do not hold in an NBD URI.
func escape(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~/", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', hex[c>>4], hex[c&15]})
	}
	return b.String()
}
