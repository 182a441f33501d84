package remote

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"tidemark"
	"tidemark/internal/vfs"
)

// Lifetimes of certificates.
const (
	authorityLife = 20 * 365 * 24 * time.Hour
	hostLife      = 60 * 24 * time.Hour
	serverLife    = 365 * 24 * time.Hour
	// slack is by how much clocks may differ when a certificate is new.
	slack = 10 * time.Minute
)

// serverName is what the server's certificate is for, wherever it listens: agents know it by its authority.
const serverName = "tidemark-server"

// Authority signs the certificates of a server and of its agents. Its methods may be called concurrently.
type Authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

const authorityFile = "authority.pem"

// OpenAuthority opens the authority that is kept in a directory, and makes one if there is none.
func OpenAuthority(dir string) (*Authority, error) {
	path := filepath.Join(dir, authorityFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return newAuthority(dir)
	}
	if err != nil {
		return nil, err
	}
	key, certs, err := parsePEM(data)
	if err != nil || len(certs) != 1 || !certs[0].IsCA {
		return nil, tidemark.Errorf(tidemark.Corrupt, "the authority of this server, %s, cannot be read: %w", path, errors.Join(err, errors.New("it has no certificate of an authority"))).
			WithHint("bring it back from a copy of the data directory; without it every host has to join anew")
	}
	return &Authority{key, certs[0]}, nil
}

func newAuthority(dir string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template("Tidemark authority", authorityLife)
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if err := writeIdentity(filepath.Join(dir, authorityFile), key, cert.Raw); err != nil {
		return nil, err
	}
	return &Authority{key, cert}, nil
}

// Fingerprint returns the SHA-256 of the authority's certificate, in hexadecimal digits.
func (a *Authority) Fingerprint() string { return fingerprint(a.cert) }

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// issue signs a certificate for a host's request, which proves that it has the key.
func (a *Authority) issue(host string, request []byte) (*x509.Certificate, error) {
	r, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = r.CheckSignature()
	}
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Invalid, "a request for a certificate cannot be read: %w", err)
	}
	t := template(host, hostLife)
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, r.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// server makes the certificate of a server that starts.
func (a *Authority) server() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := template(serverName, serverLife)
	t.DNSNames, t.IPAddresses = namesOf()
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &key.PublicKey, a.key)
	// The authority goes along: an agent that joins has only its fingerprint.
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}, err
}

func template(name string, life time.Duration) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-slack), NotAfter: now.Add(life)}
}

// writeIdentity writes a key and certificates to a file that only its owner can read, whole or not at all.
func writeIdentity(path string, key *ecdsa.PrivateKey, certs ...[]byte) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, c := range certs {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	dir := filepath.Dir(path)
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil { // nobody else gets at the file, whatever its own mode
		return err
	}
	if err := vfs.WriteFile(vfs.OS, path, data); err != nil {
		return err
	}
	return os.Chmod(path, 0o600)
}

// parsePEM reads what writeIdentity wrote.
func parsePEM(data []byte) (key *ecdsa.PrivateKey, certs []*x509.Certificate, err error) {
	for {
		b, rest := pem.Decode(data)
		if b == nil {
			break
		}
		data = rest
		switch b.Type {
		case "PRIVATE KEY":
			k, err := x509.ParsePKCS8PrivateKey(b.Bytes)
			if err != nil {
				return nil, nil, err
			}
			key, _ = k.(*ecdsa.PrivateKey)
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				return nil, nil, err
			}
			certs = append(certs, c)
		}
	}
	if key == nil {
		return nil, nil, fmt.Errorf("it has no key")
	}
	return key, certs, nil
}
