package nbd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// run runs a program and returns what it said.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	tool(t, name)
	out, err := command(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// refused runs a program that must fail.
func refused(t *testing.T, name string, args ...string) string {
	t.Helper()
	tool(t, name)
	out, err := command(t, name, args...)
	if err == nil {
		t.Fatalf("%s %s succeeded\n%s", name, strings.Join(args, " "), out)
	}
	return out
}

func command(t *testing.T, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestQEMU(t *testing.T) {
	d := newDisk(8 << 20)
	_, _, addr := serve(t, Options{}, &Export{Name: "orders@-5m", Device: d}, &Export{Name: "ro", Device: d, ReadOnly: true})
	uri, ro := URI(addr, "orders@-5m", false), URI(addr, "ro", false)
	if out := run(t, "qemu-img", "info", uri); !strings.Contains(out, "8 MiB") {
		t.Fatal(out)
	}
	out := run(t, "qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "-c", "aio_write -P 8 64k 4k", "-c", "aio_flush",
		"-c", "write -f -P 9 1M 4k", "-c", "write -P 1 2M 128k", "-c", "write -z 2M 64k", "-c", "discard 2112k 64k", "-c", "write -P 5 5555555 777", "-c", "flush",
		"-c", "read -P 7 0 64k", "-c", "read -P 8 64k 4k", "-c", "read -P 9 1M 4k", "-c", "read -P 0 2M 128k", "-c", "read -P 5 5555555 777", uri)
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		t.Fatal(out)
	}
	refused(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", ro)

	var m []struct {
		Start, Length int64
		Data          bool
	}
	if err := json.Unmarshal([]byte(run(t, "qemu-img", "map", "--output=json", "-f", "raw", uri)), &m); err != nil {
		t.Fatal(err)
	}
	if len(m) < 6 || !m[0].Data || m[0].Length != 68<<10 || m[1].Data {
		t.Fatalf("%+v", m)
	}
	img := filepath.Join(t.TempDir(), "a.img")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, img)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", img, ro)
	if got, err := os.ReadFile(img); err != nil || !bytes.Equal(got, d.b) {
		t.Fatalf("copy differs: %v", err)
	}
	if err := os.Truncate(img, 0); err != nil {
		t.Fatal(err)
	}
	p := fill(8<<20, 11)
	if err := os.WriteFile(img, p, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", img, uri)
	if !bytes.Equal(d.b, p) {
		t.Fatal("convert to the export: wrong bytes")
	}
}

func TestLibnbd(t *testing.T) {
	d, e := newDisk(8<<20), newDisk(8<<20)
	want := fill(1<<20, 5)
	d.WriteAt(want, 3<<20)
	_, _, addr := serve(t, Options{}, &Export{Name: "a", Description: "first", Device: d}, &Export{Name: "b", Device: e})
	a, b := URI(addr, "a", false), URI(addr, "b", false)
	if out := run(t, "nbdinfo", "--list", a); strings.Count(out, "export=") != 2 || !strings.Contains(out, "description: first") {
		t.Fatal(out)
	}
	if out := run(t, "nbdinfo", "--map", a); strings.Join(strings.Fields(out), " ") != "0 3145728 3 hole,zero 3145728 1048576 0 data 4194304 4194304 3 hole,zero" {
		t.Fatal(out)
	}
	for _, can := range []string{"df", "fua", "multi-conn", "fast-zero", "flush", "trim", "zero", "write"} {
		run(t, "nbdinfo", "--can", can, a)
	}
	refused(t, "nbdinfo", URI(addr, "c", false))
	run(t, "nbdcopy", "--connections=4", "--flush", a, b)
	if !bytes.Equal(d.b, e.b) || e.used[0] || !e.used[3<<20/4096] {
		t.Fatal("nbdcopy: the copy differs, or holes became data")
	}
	img := filepath.Join(t.TempDir(), "a.img")
	run(t, "nbdcopy", a, img)
	if got, err := os.ReadFile(img); err != nil || !bytes.Equal(got, d.b) {
		t.Fatalf("nbdcopy to a file: %v", err)
	}
	p := fill(8<<20, 23)
	if err := os.WriteFile(img, p, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "nbdcopy", img, b)
	if !bytes.Equal(e.b, p) {
		t.Fatal("nbdcopy from a file: wrong bytes")
	}
	e.failWith(os.ErrInvalid)
	refused(t, "nbdcopy", b, img) // a failed read must fail the copy
}

func TestNbdsh(t *testing.T) {
	tool(t, "nbdsh", "/usr/bin/python3")
	d := newDisk(1 << 20)
	_, _, addr := serve(t, Options{}, &Export{Name: "x", Device: d})
	run(t, "/usr/bin/python3", "-m", "nbd", "--base-allocation", "-u", URI(addr, "x", false),
		"-c", "h.pwrite(b'tide'*128, 512, nbd.CMD_FLAG_FUA)", "-c", "assert h.pread(512, 512) == b'tide'*128",
		"-c", "h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE)", "-c", "h.trim(4096, 0)", "-c", "assert h.pread(1024, 0) == bytes(1024)",
		"-c", "h.flush()", "-c", "r = []", "-c", "h.block_status(1<<20, 0, lambda c, o, e, err: r.extend(e))", "-c", "assert r == [8192, 3, 4096, 0, (1<<20)-12288, 3], r",
		"-c", "assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20")
}

func TestFio(t *testing.T) {
	_, _, addr := serve(t, Options{}, &Export{Name: "x", Device: newDisk(32 << 20)}, &Export{Name: "try", Device: tryDisk{func() *disk {
		d := newDisk(32 << 20)
		d.missing = func(off int64) bool { return off>>12&3 == 1 }
		return d
	}()}})
	for _, name := range []string{"x", "try"} {
		run(t, "fio", "--name=v", "--ioengine=nbd", "--uri="+URI(addr, name, false), "--rw=randwrite", "--bsrange=512-512k", "--size=32m",
			"--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=50", "--minimal")
	}
}

// nbdkit stands between a client and our server, as another client of it.
func TestNbdkit(t *testing.T) {
	tool(t, "nbdkit", "nbdinfo", "qemu-img")
	d := newDisk(4 << 20)
	d.WriteAt(fill(1<<20, 1), 0)
	_, _, addr := serve(t, Options{}, &Export{Name: "x", Device: d})
	out := run(t, "nbdkit", "-U", "-", "--filter=checkwrite", "nbd", "uri="+URI(addr, "x", false),
		"--run", "qemu-img compare -f raw -F raw $uri '"+URI(addr, "x", false)+"'")
	if !strings.Contains(out, "identical") {
		t.Fatal(out)
	}
}

// certificates writes an authority and a server's certificate the way libnbd
// wants them, and returns the directory and the server's configuration.
func certificates(t *testing.T) (dir string, conf *tls.Config) {
	t.Helper()
	dir = t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca-cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

func TestTLSRequired(t *testing.T) {
	dir, conf := certificates(t)
	d := newDisk(4 << 20)
	s, _, addr := serve(t, Options{TLS: conf, RequireTLS: true}, &Export{Name: "x", Device: d})
	c := greeted(t, addr)
	for _, opt := range []uint32{optList, optInfo, optGo, optStructuredReply, optListMetaContext, optSetMetaContext, 99} {
		c.wantOption(opt, nil, repErrTLSReqd)
	}
	c.wantOption(optStartTLS, nil, repAck)
	tc := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true})
	c.Conn = tc
	c.wantOption(optStartTLS, nil, repErrInvalid)
	c.wantOption(optSetMetaContext, metaData("x"), repErrInvalid) // structured replies start anew
	c.wantOption(optStructuredReply, nil, repAck)
	c.wantOption(optGo, infoData("x"), repInfo, repInfo, repAck)
	c.wantSimple(0, cmdWrite, flagFUA, 4096, 1<<20, fill(1<<20, 9))
	c.wantData(0, 4096, fill(1<<20, 9))

	c = greeted(t, addr)
	c.option(optExportName, []byte("x"))
	c.wantClosed()
	c = greeted(t, addr)
	c.send(uint64(magicOption), uint32(optStartTLS), uint32(0), uint64(magicOption), uint32(optList), uint32(0)) // injected ahead of TLS
	c.wantClosed()

	l, err := Listen("tcp:127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	tcp := "tcp:" + l.Addr().String()
	refused(t, "nbdinfo", URI(tcp, "x", false))
	out := run(t, "nbdinfo", "--size", URI(tcp, "x", true)+"?tls-certificates="+dir)
	if strings.TrimSpace(out) != "4194304" {
		t.Fatal(out)
	}
	img := filepath.Join(t.TempDir(), "img")
	run(t, "nbdcopy", URI(tcp, "x", true)+"?tls-certificates="+dir, img)
	if got, err := os.ReadFile(img); err != nil || !bytes.Equal(got, d.b) {
		t.Fatalf("copy over TLS: %v", err)
	}
	other, _ := certificates(t)
	refused(t, "nbdinfo", "--size", URI(tcp, "x", true)+"?tls-certificates="+other)
	tool(t, "nbdkit")
	host, port, _ := net.SplitHostPort(l.Addr().String())
	run(t, "nbdkit", "-U", "-", "nbd", "hostname="+host, "port="+port, "export=x", "tls=require", "tls-certificates="+dir, "--run", "nbdinfo --size $uri")
}
