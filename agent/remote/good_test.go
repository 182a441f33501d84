package remote

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// A connection ends with the certificate that it was made by.
func TestExpiresMeanwhile(t *testing.T) {
	s := newSite(t)
	id, dir := s.join(t, "db1")
	life := 5 * time.Second
	short := &Identity{path: filepath.Join(dir, "short"), authority: id.authority}
	key, _, err := newRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert := template("db1", life)
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, cert, s.authority.cert, &key.PublicKey, s.authority.key)
	if err == nil {
		err = short.adopt(key, der, id.authority)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.serials["db1"] = append(s.serials["db1"], cert.SerialNumber.String())
	s.mu.Unlock()
	conn, err := short.Dial(t.Context(), s.address, Request{For: Feed})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * life)); err != nil {
		t.Fatal(err)
	}
	_, err = conn.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("its certificate has expired, and it goes on")
	}
	if now, end := time.Now(), short.cert.NotAfter; now.Before(end) {
		t.Errorf("it has ended %v too soon: %v", end.Sub(now), err)
	}
	if _, err := says(id, s.address, Feed); err != nil {
		t.Errorf("by the one that is good: %v", err)
	}
}

// Who comes with a certificate just when another one of the host has used the next one is let in by that.
func TestRenewedMeanwhile(t *testing.T) {
	s := newSite(t)
	id, dir := s.join(t, "db1")
	if err := id.SetServer(s.address); err != nil {
		t.Fatal(err)
	}
	var renew atomic.Bool
	s.admitting = func() {
		if !renew.CompareAndSwap(true, false) {
			return
		}
		if err := id.Renew(context.Background(), s.address); err != nil {
			t.Error(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.serials["db1"] = s.serials["db1"][len(s.serials["db1"])-1:]
	}
	dials := map[string]func() (net.Conn, error){
		"agent":    func() (net.Conn, error) { return id.Dial(t.Context(), s.address, Request{For: Feed}) },
		"attacher": func() (net.Conn, error) { return DialFrom(t.Context(), dir, Request{For: Disk, Disk: "of db1"}) },
	}
	for who, dial := range dials {
		renew.Store(true)
		conn, err := dial()
		if err != nil {
			t.Errorf("the %s: %v", who, err)
			continue
		}
		conn.Close()
	}
}
