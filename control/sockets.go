package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tidemark"
	"tidemark/export/nbd"
)

// socket is an address at which exports are served. Those that asked for an
// address of their own have a table of their own: whoever gets there sees
// nothing else, least of all the disks that the server attaches itself.
type socket struct {
	addr   string // as it is listened on, with the port that was found
	tls    string // the directory of its certificates, or empty
	table  *nbd.Table
	server *nbd.Server
}

// ownSocket is the server's own, which only its user can open.
func (c *Control) ownSocket() *socket {
	return &socket{addr: "unix:" + c.DiskSocket(), table: c.exports, server: c.nbd}
}

// openSocket returns the socket that an export asks for, and listens there if
// nobody does yet.
func (c *Control) openSocket(k *keptExport) (*socket, error) {
	if k.Listen == c.ownSocket().addr {
		return c.ownSocket(), nil
	}
	if strings.HasPrefix(k.Listen, "tcp:") && k.TLS == "" && !k.Insecure {
		return nil, tidemark.Errorf(tidemark.Denied, "whoever reaches %s could read the disk", k.Listen).
			WithHint("give --tls DIR with ca-cert.pem, server-cert.pem and server-key.pem, or --insecure on a network that you trust")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.sockets[k.Listen]; ok {
		if s.tls != k.TLS {
			return nil, tidemark.Errorf(tidemark.Conflict, "%s serves other exports with other certificates", k.Listen).WithHint("choose another address")
		}
		return s, nil
	}
	opt := nbd.Options{Logger: c.log}
	if k.TLS != "" {
		var err error
		if opt.TLS, err = certificates(k.TLS); err != nil {
			return nil, err
		}
		opt.RequireTLS = true
	}
	l, err := nbd.ListenAnywhere(k.Listen)
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Invalid, "%w", err).WithHint("use unix:/PATH or tcp:HOST:PORT of a free port")
	}
	if l.Addr().Network() == "tcp" {
		k.Listen = "tcp:" + l.Addr().String() // a port that was found stays the port
	}
	s := &socket{addr: k.Listen, tls: k.TLS, table: nbd.NewTable()}
	s.server = nbd.NewServer(s.table, opt)
	c.sockets[s.addr] = s
	c.serve(s.server, l)
	return s, nil
}

// closeSocket ends a socket that serves nothing any more.
func (c *Control) closeSocket(s *socket) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sockets[s.addr] != s || len(s.table.List()) > 0 {
		return nil
	}
	delete(c.sockets, s.addr)
	return s.server.Close()
}

// socketOf finds the socket that serves an export.
func (c *Control) socketOf(k keptExport) *socket {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.sockets[k.Listen]; ok {
		return s
	}
	return c.ownSocket()
}

// closeSockets ends all of them, the server's own included.
func (c *Control) closeSockets() error {
	c.mu.Lock()
	servers := []*nbd.Server{c.nbd}
	for _, s := range c.sockets {
		servers = append(servers, s.server)
	}
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var errs []error
	for _, s := range servers {
		errs = append(errs, ignoreTimeout(s.Shutdown(ctx)), s.Close())
	}
	return errors.Join(errs...)
}

// certificates reads what a directory holds for a server, by the names that
// qemu and libnbd use. Clients need a certificate of the same authority.
func certificates(dir string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Invalid, "the server's certificate cannot be used: %w", err).WithHint("--tls DIR needs server-cert.pem and server-key.pem")
	}
	text, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	authority := x509.NewCertPool()
	if err != nil || !authority.AppendCertsFromPEM(text) {
		return nil, tidemark.Errorf(tidemark.Invalid, "%s is no certificate of an authority", filepath.Join(dir, "ca-cert.pem")).WithHint("it says whose clients may connect")
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: authority, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}, nil
}
