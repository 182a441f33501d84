package remote

import (
	"net"
	"testing"
)

// Who connects from one address and says nothing keeps nobody of another one out.
func TestSilent(t *testing.T) {
	s := newSite(t)
	id, _ := s.join(t, "db1")
	elsewhere := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range maxStrangers {
		conn, err := elsewhere.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if got, err := says(id, s.address, Feed); got != "db1 on feed: hello" || err != nil {
		t.Fatalf("%q %v", got, err)
	}
}
