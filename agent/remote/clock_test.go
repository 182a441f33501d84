package remote

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark"
)

// clockWrong holds that an error is one line that says whose certificate is not good, and that it may be a clock.
func clockWrong(t *testing.T, what string, err error, says string) {
	t.Helper()
	denied(t, what, err)
	var told *tidemark.Error
	if !errors.As(err, &told) || !strings.Contains(told.Message, says) || !strings.Contains(told.Hint, "clock") || strings.ContainsAny(err.Error(), "\n") {
		t.Errorf("%s: %v", what, err)
	}
}

// goodFrom is a certificate of a host that the authority has signed, for a time.
func (s *site) goodFrom(t *testing.T, i *Identity, begin, end time.Time) *x509.Certificate {
	t.Helper()
	cert := template(i.Host(), time.Hour)
	cert.NotBefore, cert.NotAfter, cert.ExtKeyUsage = begin, end, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, cert, s.authority.cert, &i.key.PublicKey, s.authority.key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serials[i.Host()] = append(s.serials[i.Host()], signed.SerialNumber.String()) // the owner would take it
	return signed
}

// A certificate whose time is over, or has not come, by the server's clock is refused by the server itself, whatever the host's own clock says.
func TestServerRefusesByItsClock(t *testing.T) {
	s := newSite(t)
	id, _ := s.join(t, "db1")
	good, now := id.cert, time.Now()
	for what, cert := range map[string]*x509.Certificate{
		"expired": s.goodFrom(t, id, now.Add(-48*time.Hour), now.Add(-time.Hour)),
		"not yet": s.goodFrom(t, id, now.Add(time.Hour), now.Add(48*time.Hour)),
	} {
		past := *cert // what is sent is cert.Raw; what this host looks at itself is good
		past.NotBefore, past.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
		id.cert = &past
		for range 50 {
			_, err := says(id, s.address, Feed)
			clockWrong(t, what, err, "the server does not take this host's certificate")
			if t.Failed() {
				break
			}
		}
		clockWrong(t, what+", to be renewed", id.Renew(t.Context(), s.address), "the server does not take this host's certificate")
		if id.cert != &past {
			t.Errorf("%s: it was renewed", what)
		}
	}
	id.cert = good
	if got, err := says(id, s.address, Feed); got != "db1 on feed: hello" || err != nil {
		t.Errorf("by one that is good: %q %v", got, err)
	}
}

// A host whose clock is far off finds the server's certificate not good when it joins, and the token is not used up by that.
func TestJoinByAWrongClock(t *testing.T) {
	s, now := newSite(t), time.Now()
	for what, span := range map[string][2]time.Time{
		"slow": {now.Add(24 * time.Hour), now.Add(48 * time.Hour)},
		"fast": {now.Add(-48 * time.Hour), now.Add(-24 * time.Hour)},
	} {
		dir, token := filepath.Join(t.TempDir(), "identity"), s.invite("db1")
		s.certified(t, span[0], span[1])
		_, err := Join(t.Context(), s.address, token, dir)
		clockWrong(t, what, err, "the server's certificate is not good by this host's clock")
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something is left of it: %v", what, err)
		}
		s.certified(t, now.Add(-time.Hour), now.Add(time.Hour))
		if _, err := Join(t.Context(), s.address, token, dir); err != nil {
			t.Errorf("%s: by the same token, when the clock is set: %v", what, err)
		}
	}
}

// certified gives the server a certificate for a time, which is the same to a host as that its own clock is off.
func (s *site) certified(t *testing.T, begin, end time.Time) {
	t.Helper()
	key, _, err := newRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert := template(serverName, time.Hour)
	cert.NotBefore, cert.NotAfter, cert.DNSNames, cert.ExtKeyUsage = begin, end, []string{serverName}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, cert, s.authority.cert, &key.PublicKey, s.authority.key)
	if err != nil {
		t.Fatal(err)
	}
	s.shown.Store(&tls.Certificate{Certificate: [][]byte{der, s.authority.cert.Raw}, PrivateKey: key})
}

// A clock that is so fast that the certificate which is made for the host is over already is told at once, and who the host was it stays.
func TestNothingIsAdoptedThatIsOver(t *testing.T) {
	s, now := newSite(t), time.Now()
	id, dir := s.join(t, "db1")
	before, err := os.ReadFile(filepath.Join(dir, identityFile))
	if err != nil {
		t.Fatal(err)
	}
	for what, cert := range map[string]*x509.Certificate{
		"fast": s.goodFrom(t, id, now.Add(-48*time.Hour), now.Add(-time.Hour)),
		"slow": s.goodFrom(t, id, now.Add(time.Hour), now.Add(48*time.Hour)),
	} {
		clockWrong(t, what, id.adopt(id.key, cert.Raw, id.authority), "is good from")
		if after, err := os.ReadFile(filepath.Join(dir, identityFile)); err != nil || string(after) != string(before) {
			t.Errorf("%s: the identity is another one: %v", what, err)
		}
	}
}
