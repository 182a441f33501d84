package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

// What a connection is for.
const (
	// Calls is the connection on which the server calls the agent.
	Calls = "calls"
	// Feed carries the stream of a tap.
	Feed = "feed"
	// WriteBack carries what the server writes to tapped disks of the host.
	WriteBack = "write-back"
	// Capture carries a tree of the host that is captured, or what is said to a cluster there whose log is received.
	Capture = "capture"
	// Disk carries NBD for one disk of the server that is shown on the host.
	Disk = "disk"

	join  = "join"  // trades a token for a certificate
	renew = "renew" // trades a certificate for its successor
)

// Request is what a host wants a connection for.
type Request struct {
	For string `json:"for"` // Calls, Feed, WriteBack, Capture or Disk
	// Disk is the name of the export, for Disk. Client and Session say who wants it: a client has one session at a time, each with a higher
	// number than the last.
	Disk    string `json:"disk,omitempty"`
	Client  string `json:"client,omitempty"`
	Session uint64 `json:"session,omitempty"`
}

// known reports whether it is for something that an owner takes.
func (r Request) known() bool {
	return r.For == Calls || r.For == Feed || r.For == WriteBack || r.For == Capture || r.For == Disk
}

// opening is the first line that an agent says, and answer the server's.
type opening struct {
	Request
	Secret string `json:"secret,omitempty"`  // of a token
	PKCS10 []byte `json:"request,omitempty"` // for a certificate
}

type answer struct {
	Error *tidemark.Error `json:"error,omitempty"`
	// ShutOut: the error is [ErrShutOut].
	ShutOut bool   `json:"shut_out,omitempty"`
	Cert    []byte `json:"cert,omitempty"` // DER
	Host    string `json:"host,omitempty"`
}

// ErrShutOut is why a server lets nobody in by a certificate, and never will again: its host was removed, or has another one. Other errors of kind Denied, such as of a
// clock that is wrong, may pass. An [Owner] wraps it; so does an error of the one who dials.
var ErrShutOut = errors.New("shut out for good")

// Limits of the first lines.
const (
	greetTime = 15 * time.Second
	maxLine   = 16 << 10
)

func writeLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// readLine reads a line of JSON, and nothing behind it.
func readLine(r io.Reader, v any) error {
	var line []byte
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		if b[0] == '\n' {
			return json.Unmarshal(line, v)
		}
		if line = append(line, b[0]); len(line) > maxLine {
			return fmt.Errorf("a greeting of more than %d bytes", maxLine)
		}
	}
}

// Times after which a host that does not answer counts as gone.
const (
	quietTime = 5 * time.Second
	goneAfter = 20 * time.Second
)

// keepAlive has the kernel find out that the other host is gone: by probes while nothing is sent, and by what is not acknowledged.
func keepAlive(conn net.Conn) error {
	t, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	if err := t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: quietTime, Interval: quietTime, Count: int(goneAfter/quietTime) - 1}); err != nil {
		return err
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = syscall.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(goneAfter/time.Millisecond))
	})
	if err != nil {
		return err
	}
	return serr
}
