package remote

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"tidemark"
	"tidemark/internal/vfs"
)

const identityFile = "identity.pem"

// Identity is who a host is to its server. Its methods may be called concurrently.
type Identity struct {
	path string

	mu        sync.Mutex
	key       *ecdsa.PrivateKey
	cert      *x509.Certificate
	authority *x509.Certificate
}

// OpenIdentity opens the identity that is kept in a directory: an error that wraps os.ErrNotExist if the host has not joined.
func OpenIdentity(dir string) (*Identity, error) {
	i := &Identity{path: filepath.Join(dir, identityFile)}
	data, err := os.ReadFile(i.path)
	if err != nil {
		return nil, err
	}
	key, certs, err := parsePEM(data)
	if err != nil || len(certs) != 2 {
		return nil, tidemark.Errorf(tidemark.Corrupt, "the identity of this host, %s, cannot be read: %w", i.path, errors.Join(err, errors.New("it needs two certificates"))).
			WithHint("remove it, and join again with a new token")
	}
	i.key, i.cert, i.authority = key, certs[0], certs[1]
	return i, nil
}

// Host is the name that the server knows the host by.
func (i *Identity) Host() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cert.Subject.CommonName
}

// Join trades a token for an identity, which is kept in a directory: at the server of that token, and no other.
func Join(ctx context.Context, address string, t Token, dir string) (*Identity, error) {
	i := &Identity{path: filepath.Join(dir, identityFile)}
	if err := i.Rejoin(ctx, address, t); err != nil {
		return nil, err
	}
	return i, nil
}

// Rejoin trades a token for another identity in place of this one, which stays what it was if that fails.
func (i *Identity) Rejoin(ctx context.Context, address string, t Token) error {
	key, request, err := newRequest()
	if err != nil {
		return err
	}
	var authority *x509.Certificate
	conn, err := dial(ctx, address, &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: serverName,
		InsecureSkipVerify: true, // by the roots of this system; by the token's fingerprint it is verified
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			authority, err = ofToken(cs.PeerCertificates, t.Fingerprint)
			return err
		},
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	a, err := ask(conn, opening{Request: Request{For: join}, Secret: t.Secret, PKCS10: request})
	if err != nil {
		return err
	}
	return i.adopt(key, a.Cert, authority)
}

// ofToken verifies a server's certificates by the fingerprint of its authority, which it returns.
func ofToken(certs []*x509.Certificate, want string) (*x509.Certificate, error) {
	for _, c := range certs {
		if fingerprint(c) == want {
			return c, verifyServer(certs[0], c)
		}
	}
	return nil, tidemark.Errorf(tidemark.Denied, "this is not the server that made the token").WithHint("check the address; or have the right server make a token: `tidemark host add NAME`")
}

func verifyServer(cert, authority *x509.Certificate) error {
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: serverName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err
}

// newRequest makes a key, and a request for a certificate of it.
func newRequest() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return key, request, err
}

// adopt takes a certificate for a key, durably. Nobody dials meanwhile by the one before: when others of this host have found the new one in the
// file, and used it, that is good for nothing.
func (i *Identity) adopt(key *ecdsa.PrivateKey, der []byte, authority *x509.Certificate) error {
	cert, err := x509.ParseCertificate(der)
	if err == nil {
		err = cert.CheckSignatureFrom(authority)
	}
	if err != nil {
		return fmt.Errorf("read the certificate from the server: %w", err)
	}
	if err := goodNow(cert); err != nil { // one clock is off by more than a certificate lasts
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := writeIdentity(i.path, key, cert.Raw, authority.Raw); err != nil {
		return fmt.Errorf("keep the identity of this host: %w", err)
	}
	i.key, i.cert, i.authority = key, cert, authority
	return nil
}

// Dial makes a connection, a [*tls.Conn]. A server that lets nobody in by this identity is an error of kind Denied.
func (i *Identity) Dial(ctx context.Context, address string, r Request) (net.Conn, error) {
	conn, _, err := i.open(ctx, address, opening{Request: r})
	return conn, err
}

// addressFile is where an identity has its server, beside it.
const addressFile = "server"

// SetServer notes where the server is, for those who dial by what is in the directory.
func (i *Identity) SetServer(address string) error {
	path := filepath.Join(filepath.Dir(i.path), addressFile)
	if was, err := os.ReadFile(path); err == nil && string(was) == address {
		return nil
	}
	if err := vfs.WriteFile(vfs.OS, path, []byte(address)); err != nil {
		return err
	}
	return os.Chmod(path, 0o600)
}

// DialFrom makes a connection with the server that is noted in the directory of an identity, by the identity that is there now: it
// is renewed from time to time.
func DialFrom(ctx context.Context, dir string, r Request) (net.Conn, error) {
	i, err := OpenIdentity(dir)
	if err != nil {
		return nil, err
	}
	address, err := os.ReadFile(filepath.Join(dir, addressFile))
	if err != nil {
		return nil, err
	}
	conn, err := i.Dial(ctx, string(address), r)
	if tidemark.KindOf(err) != tidemark.Denied {
		return conn, err
	}
	if now, oerr := OpenIdentity(dir); oerr == nil && !now.cert.Equal(i.cert) { // renewed meanwhile
		return now.Dial(ctx, string(address), r)
	}
	return conn, err
}

// renewAt is the part of a certificate's life after which it is renewed.
const renewAt = 0.5

// Due reports whether it is time to renew the certificate.
func (i *Identity) Due() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	life := i.cert.NotAfter.Sub(i.cert.NotBefore)
	return time.Since(i.cert.NotBefore) > time.Duration(float64(life)*renewAt)
}

// Renew has the server make the next certificate, for a new key.
func (i *Identity) Renew(ctx context.Context, address string) error {
	key, request, err := newRequest()
	if err != nil {
		return err
	}
	conn, a, err := i.open(ctx, address, opening{Request: Request{For: renew}, PKCS10: request})
	if err != nil {
		return err
	}
	i.mu.Lock()
	authority := i.authority
	i.mu.Unlock()
	return errors.Join(i.adopt(key, a.Cert, authority), conn.Close())
}

// open makes a connection. By a certificate that was renewed meanwhile nobody may be let in any more, which says nothing of the next one.
func (i *Identity) open(ctx context.Context, address string, o opening) (net.Conn, answer, error) {
	for {
		i.mu.Lock()
		used := i.cert
		i.mu.Unlock()
		conn, a, err := i.try(ctx, address, o)
		i.mu.Lock()
		renewed := i.cert != used
		i.mu.Unlock()
		if tidemark.KindOf(err) != tidemark.Denied || !renewed {
			return conn, a, err
		}
	}
}

func (i *Identity) try(ctx context.Context, address string, o opening) (net.Conn, answer, error) {
	i.mu.Lock()
	cert := tls.Certificate{Certificate: [][]byte{i.cert.Raw}, PrivateKey: i.key, Leaf: i.cert}
	roots := x509.NewCertPool()
	roots.AddCert(i.authority)
	i.mu.Unlock()
	if err := goodNow(cert.Leaf); err != nil {
		return nil, answer{}, err
	}
	conn, err := dial(ctx, address, &tls.Config{MinVersion: tls.VersionTLS13, ServerName: serverName, RootCAs: roots, Certificates: []tls.Certificate{cert}})
	if err != nil {
		return nil, answer{}, err
	}
	a, err := ask(conn, o)
	if err != nil {
		_ = conn.Close() // who was refused is cut off, and is not told that as well
		return nil, a, err
	}
	return conn, a, nil
}

// goodNow returns an error unless a certificate of this host is good by its clock.
func goodNow(cert *x509.Certificate) error {
	now := time.Now()
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return tidemark.Errorf(tidemark.Denied, "the certificate of this host is good from %s to %s, and its clock says %s", cert.NotBefore.Format(time.RFC3339),
			cert.NotAfter.Format(time.RFC3339), now.Format(time.RFC3339)).WithHint("set the clock; or join again with a new token: `tidemark host add NAME` on the server")
	}
	return nil
}

// dial connects, and makes sure who is there.
func dial(ctx context.Context, address string, config *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Unavailable, "the server cannot be reached: %w", err).WithHint("does it run with --listen? is a firewall in between?")
	}
	conn := tls.Client(raw, config)
	if err := errors.Join(keepAlive(raw), conn.HandshakeContext(ctx)); err != nil {
		return nil, errors.Join(explain(err), raw.Close())
	}
	return conn, nil
}

// explain says what an error of a handshake means here.
func explain(err error) error {
	var told *tidemark.Error
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var alert *net.OpError
	switch {
	case errors.As(err, &told):
		return told
	case errors.As(err, &unknown):
		return tidemark.Errorf(tidemark.Denied, "this is not the server that this host joined: %w", err).WithHint("check the address; or join the other one with a token of it, and another --data")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return tidemark.Errorf(tidemark.Denied, "the server's certificate is not good by this host's clock: %w", err).WithHint("set the clocks of both hosts; the server renews its own when it starts")
	case errors.As(err, &alert) && alert.Op == "remote error": // as crypto/tls calls an alert of the other end
		return tidemark.Errorf(tidemark.Denied, "the server does not take this host's certificate: %w", err).WithHint("set the clocks of both hosts; or join again with a new token: `tidemark host add NAME` on the server")
	}
	return fmt.Errorf("greet the server: %w", err)
}

// ask says what a connection is for, and hears the answer.
func ask(conn *tls.Conn, o opening) (a answer, err error) {
	if err := conn.SetDeadline(time.Now().Add(greetTime)); err != nil {
		return a, err
	}
	_ = writeLine(conn, o) // if the server has cut it off meanwhile, an alert says why
	if err := readLine(conn, &a); err != nil {
		return a, explain(err)
	}
	if a.Error != nil {
		if a.ShutOut {
			a.Error.Cause = ErrShutOut
		}
		return a, a.Error
	}
	return a, conn.SetDeadline(time.Time{})
}
