package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tidemark"
	"tidemark/access"
)

// Owner decides who may come in, and takes connections. Its methods may be called concurrently.
type Owner interface {
	// Redeem returns the host that a token is for, by its [Token.Hash], and lets nobody redeem it again. from is who came with it.
	Redeem(ctx context.Context, hash string, from netip.Addr) (host string, err error)
	// Certified notes that a host, which came from an address, has a new certificate, by its serial number. It follows another one, which the host may still use, or what was
	// redeemed, by the hash of the token: where that was replaced since, by whomever, it is an error of kind Denied.
	Certified(ctx context.Context, host, follows, serial string, from netip.Addr) error
	// Admit says whether a host, which came from an address, may come in with a certificate, and have what it asks for. An error is told to the agent.
	Admit(ctx context.Context, host, serial string, from netip.Addr, r Request) error
	// Take takes a connection of a host that was admitted, by a certificate that may have been replaced since, and returns when it is done with it. The
	// connection is closed, and ctx done, when the certificate expires.
	Take(ctx context.Context, host, serial string, r Request, conn net.Conn)
}

// Server accepts the connections of agents.
type Server struct {
	authority *Authority
	owner     Owner
	log       *slog.Logger
	config    *tls.Config
	web       *web
	strangers *access.Shares // held by those who did not say yet who they are
}

// How many connections may be in their greeting: of all, and of one address, from which all disks of a host may come back at once.
const (
	maxStrangers  = 512
	maxOneAddress = 64
)

// NewServer returns a server for an owner, which is reached at an address.
func NewServer(a *Authority, o Owner, addr net.Addr, log *slog.Logger) (*Server, error) {
	cert, err := a.server()
	if err != nil {
		return nil, fmt.Errorf("make the server's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &Server{authority: a, owner: o, log: log, strangers: access.NewShares(maxStrangers, maxOneAddress),
		web:    &web{conns: make(chan net.Conn), end: make(chan struct{}), addr: addr},
		config: &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS13, NextProtos: webProtocols}}, nil
}

// Serve accepts connections until l is closed, and returns when all of them have ended. ctx ends them.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var all sync.WaitGroup
	defer all.Wait()
	defer s.web.Close()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			s.log.Warn("a connection of an agent was not accepted", "error", err)
			time.Sleep(100 * time.Millisecond) // descriptors may be short
			continue
		}
		if known, ok := s.strangers.Take(addressOf(conn)); ok {
			all.Go(func() { s.serve(ctx, conn, known) })
		} else {
			conn.Close()
		}
	}
}

// addressOf is where a connection comes from.
func addressOf(conn net.Conn) netip.Addr {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// serve greets who has connected, and lets him in. known is called when he is no stranger any more.
func (s *Server) serve(ctx context.Context, raw net.Conn, known func()) {
	defer known()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	conn := tls.Server(raw, s.config)
	err := s.shakeHands(ctx, conn)
	if err == nil && slices.Contains(webProtocols, conn.ConnectionState().NegotiatedProtocol) {
		known()
		if err := conn.SetDeadline(time.Time{}); err != nil || !s.web.hand(ctx, conn) {
			conn.Close()
		}
		return
	}
	defer conn.Close()
	var host string
	var r Request
	if err == nil {
		host, r, err = s.greet(ctx, conn)
	}
	known()
	if err != nil {
		s.log.Warn("an agent was turned away", "address", addressOf(raw), "host", host, "error", err)
		return
	}
	if r.known() {
		s.take(ctx, host, r, conn)
	}
}

// take gives a connection to the owner, for as long as its certificate is good.
func (s *Server) take(ctx context.Context, host string, r Request, conn *tls.Conn) {
	cert := conn.ConnectionState().PeerCertificates[0]
	ctx, cancel := context.WithDeadline(ctx, cert.NotAfter)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.NetConn().Close() })()
	s.owner.Take(ctx, host, cert.SerialNumber.String(), r, conn)
}

func (s *Server) shakeHands(ctx context.Context, conn *tls.Conn) error {
	if err := errors.Join(keepAlive(conn.NetConn()), conn.SetDeadline(time.Now().Add(greetTime))); err != nil {
		return err
	}
	return conn.HandshakeContext(ctx)
}

// greet finds out who it is and what he wants, and answers.
func (s *Server) greet(ctx context.Context, conn *tls.Conn) (host string, r Request, err error) {
	var o opening
	if err := readLine(conn, &o); err != nil {
		return "", r, fmt.Errorf("read a greeting: %w", err)
	}
	a, err := s.admit(ctx, conn.ConnectionState().PeerCertificates, o, addressOf(conn))
	if err != nil {
		a = refusal(err)
	}
	if werr := writeLine(conn, a); err == nil {
		err = werr
	}
	return a.Host, o.Request, errors.Join(err, conn.SetDeadline(time.Time{}))
}

func (s *Server) admit(ctx context.Context, certs []*x509.Certificate, o opening, from netip.Addr) (a answer, err error) {
	if o.For == join {
		hash := Token{Secret: o.Secret}.Hash()
		host, err := s.owner.Redeem(ctx, hash, from)
		if err != nil {
			return a, err
		}
		return s.certify(ctx, host, hash, o.PKCS10, from)
	}
	if len(certs) == 0 {
		return a, tidemark.Errorf(tidemark.Denied, "an agent has to join before it is let in").WithHint("`tidemark host add NAME` on the server makes a token for it")
	}
	serial := certs[0].SerialNumber.String()
	a.Host = certs[0].Subject.CommonName
	if err := s.owner.Admit(ctx, a.Host, serial, from, o.Request); err != nil {
		return a, err
	}
	if o.For == renew {
		return s.certify(ctx, a.Host, serial, o.PKCS10, from)
	}
	if o.known() {
		return a, nil
	}
	return a, tidemark.Errorf(tidemark.Invalid, "this server has nothing for agents by the name %q", o.For).WithHint("server and agent must be of one version")
}

// certify makes a certificate, which is noted before it is handed out.
func (s *Server) certify(ctx context.Context, host, follows string, request []byte, from netip.Addr) (a answer, err error) {
	cert, err := s.authority.issue(host, request)
	if err != nil {
		return a, err
	}
	return answer{Cert: cert.Raw, Host: host}, s.owner.Certified(ctx, host, follows, cert.SerialNumber.String(), from)
}

// refusal tells an error to an agent, if it says anything to somebody on another host.
func refusal(err error) answer {
	var told *tidemark.Error
	if !errors.As(err, &told) {
		told = tidemark.Errorf(tidemark.Internal, "the server could not do it").WithHint("its log says why")
	}
	return answer{Error: told, ShutOut: errors.Is(err, ErrShutOut)}
}
