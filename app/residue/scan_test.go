package residue

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/block"
)

// memory is a disk in memory, with holes where blocks are zeros.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if err := block.Check(m, off, int64(len(p))); err != nil {
		return 0, err
	}
	return copy(p, m[off:]), nil
}

func (m memory) Extents(off, n int64, fn func(block.Extent) bool) error {
	for end := off + n; off < end; {
		next := min((off/block.BlockSize+1)*block.BlockSize, end)
		if !fn(block.Extent{Off: off, Len: next - off, Hole: len(bytes.Trim(m[off:next], "\x00")) == 0}) {
			return nil
		}
		off = next
	}
	return nil
}

func testRand(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("RESIDUE_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("RESIDUE_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

func prints(t testing.TB, ways Way, values ...string) *Fingerprints {
	t.Helper()
	b, err := NewBuilder(NewKey(), ways)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		if _, err := b.Add([]byte(v)); err != nil {
			t.Fatalf("%q: %v", v, err)
		}
	}
	return b.Fingerprints()
}

func scan(t testing.TB, disk block.Reader, f *Fingerprints, opts Options) (list []Finding, res *Result) {
	t.Helper()
	res, err := Scan(context.Background(), disk, f, opts, func(f Finding) bool { list = append(list, f); return true })
	if err != nil {
		t.Fatal(err)
	}
	if res.Findings != len(list) {
		t.Fatalf("%d findings, result says %d", len(list), res.Findings)
	}
	return list, res
}

// planted is what a test put on a disk.
type planted struct {
	value    int
	offset   int64
	encoding string
	bytes    []byte
}

func randomValue(rng *rand.Rand) string {
	letters := []rune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ÄÖÜäöüßéÉñÑ'-.@_")
	if rng.IntN(6) == 0 {
		letters = []rune("абвгдеЖЗИКЛ漢字かな東京大阪")
	}
	for {
		var s []rune
		for range 6 + rng.IntN(40) {
			s = append(s, letters[rng.IntN(len(letters))])
		}
		if v := strings.TrimSpace(string(s)); len([]rune(v)) >= 6 {
			return v
		}
	}
}

// otherCase changes the case of some letters.
func otherCase(rng *rand.Rand, s string) string {
	return strings.Map(func(r rune) rune {
		if rng.IntN(2) == 0 {
			return r
		}
		if r >= 'a' && r <= 'z' || r >= 0xe0 && r <= 0xfe && r != 0xf7 {
			return r - 32
		}
		if r >= 'A' && r <= 'Z' || r >= 0xc0 && r <= 0xde && r != 0xd7 {
			return r + 32
		}
		return r
	}, s)
}

func spaced(rng *rand.Rand, digits string) string {
	var s strings.Builder
	for i, d := range digits {
		if i > 0 && rng.IntN(3) == 0 {
			s.WriteString([]string{" ", "-", ".", "/", ") ", "(", "\u00a0"}[rng.IntN(7)])
		}
		s.WriteRune(d)
	}
	return s.String()
}

// plantable makes a value and the bytes of it as somebody could have written them.
func plantable(rng *rand.Rand, number int, folded bool) (value string, p planted) {
	p.value = number
	switch rng.IntN(6) {
	case 0:
		value = fmt.Sprint(1_000_000_000_000 + rng.Int64N(8_999_000_000_000_000))
		p.encoding = "digits"
		forms := textForms([]byte(spaced(rng, value)), AsIs)
		p.bytes = forms[rng.IntN(len(forms))].bytes
		if len(forms) > 3 && p.bytes[0] == 0 || bytes.HasPrefix(p.bytes, []byte{0}) { // big-endian: the digit is the second byte
			p.bytes = p.bytes[1:]
		}
	case 1:
		n := 1<<40 + rng.Int64N(1<<62)
		value, p.encoding, p.bytes = fmt.Sprint(n), "int8", binary.LittleEndian.AppendUint64(nil, uint64(n))
	case 2:
		n := 1_000_000_000_001 + 2*rng.Int64N(8_999_000_000_000_000)
		digits := numeric(n)
		value, p.encoding = fmt.Sprint(n), "numeric"
		weight := (len(fmt.Sprint(n)) - 1) / 4
		if rng.IntN(2) == 0 {
			p.bytes = append(binary.LittleEndian.AppendUint32(nil, uint32(weight)<<16), digits...)
		} else {
			p.bytes = append([]byte{0, 0, byte(weight), 0x80}, digits...)
		}
	case 3:
		var u [16]byte
		binary.LittleEndian.PutUint64(u[:], rng.Uint64())
		binary.LittleEndian.PutUint64(u[8:], rng.Uint64())
		value, p.encoding, p.bytes = fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]), "uuid", u[:]
	case 4:
		p.bytes = make([]byte, 6+rng.IntN(60))
		for i := range p.bytes {
			p.bytes[i] = byte(1 + rng.IntN(255))
		}
		if n := len(p.bytes) - 6; rng.IntN(2) == 0 { // zeros are where searches skip
			clear(p.bytes[:n])
		} else if rng.IntN(2) == 0 {
			clear(p.bytes[6:])
		}
		value, p.encoding = `\x`+hex.EncodeToString(p.bytes), "bytes"
	default:
		value = randomValue(rng)
		text := value
		if folded {
			text = otherCase(rng, text)
		}
		forms := textForms([]byte(text), AsIs)
		f := forms[rng.IntN(len(forms))]
		p.encoding, p.bytes = f.form.String(), f.bytes
	}
	return value, p
}

// TestPlanted puts values at random places of random disks, in all forms, also where pieces meet and where holes are, and finds all.
func TestPlanted(t *testing.T) {
	rng := testRand(t)
	for round := range 8 {
		ways := []Way{AsIs, Folded}[round%2] | Digits | Binary
		disk := make(memory, 2*pieceSize+rng.IntN(2*pieceSize))
		background(rng, disk)
		var values []string
		var want []planted
		taken := map[int64]bool{}
		for i := range 400 {
			v, p := plantable(rng, i+1, ways&Folded != 0)
			values = append(values, v)
			p.offset = place(rng, len(disk), len(p.bytes))
			if slot := p.offset / 1024; taken[slot] || taken[slot-1] || taken[slot+1] {
				continue
			} else {
				taken[slot] = true
			}
			copy(disk[p.offset:], p.bytes)
			if p.encoding == "numeric" {
				p.offset += 4
			}
			want = append(want, p)
		}
		got, res := scan(t, disk, prints(t, ways, values...), Options{Workers: 1 + rng.IntN(3)})
		if res.Searched > res.Size+res.Size/100 {
			t.Errorf("searched %d of %d bytes", res.Searched, res.Size)
		}
		for _, p := range want {
			if !slices.ContainsFunc(got, func(f Finding) bool {
				return f.Value == p.value && f.Offset == p.offset && f.Encoding == p.encoding
			}) {
				t.Errorf("round %d: value %d (%q, %s) at %d was not found", round, p.value, values[p.value-1], p.encoding, p.offset)
			}
		}
		for _, f := range got {
			if !slices.ContainsFunc(want, func(p planted) bool { return f.Value == p.value && max(f.Offset-p.offset, p.offset-f.Offset) < 8 }) {
				t.Errorf("round %d: found what was not there: %+v (%q)", round, f, values[f.Value-1])
			}
		}
	}
}

// zone is what is a hole as a whole, or not: longer than holes that are searched because they are short.
const zone = 4 * tailSize

// background fills a disk: noise, text, small numbers, zeros, and long holes.
func background(rng *rand.Rand, disk []byte) {
	hole := false
	for off := 0; off < len(disk); off += block.BlockSize {
		if off%zone == 0 {
			hole = rng.IntN(2) == 0
		}
		if hole {
			continue
		}
		b := disk[off:min(off+block.BlockSize, len(disk))]
		switch rng.IntN(5) {
		case 0:
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
		case 1:
			for i := range b {
				b[i] = "the quick brown fox jumps 01234 56789 "[rng.IntN(38)]
			}
		case 2:
			for i := 0; i+4 <= len(b); i += 4 {
				b[i] = byte(rng.IntN(100))
			}
		}
	}
}

// place is an offset of n bytes, often where something ends.
func place(rng *rand.Rand, size, n int) int64 {
	off := rng.IntN(size - n)
	switch rng.IntN(5) {
	case 2:
		off = off/zone*zone - rng.IntN(n+1)
	case 0:
		off = pieceSize*(1+rng.IntN(size/pieceSize)) - rng.IntN(n+1)
	case 1:
		off = off/block.BlockSize*block.BlockSize - rng.IntN(n+1)
	}
	return int64(min(max(off, 0), size-n))
}

func TestScanStops(t *testing.T) {
	disk := make(memory, 10<<20)
	for off := 0; off < len(disk)-100; off += 10_000 {
		copy(disk[off:], "Erika Mustermann")
	}
	f := prints(t, AsIs, "Erika Mustermann")
	n := 0
	res, err := Scan(context.Background(), disk, f, Options{}, func(Finding) bool { n++; return n < 3 })
	if err != nil || n != 3 || res.Findings != 3 || !res.Stopped || res.Clean() {
		t.Errorf("%d reports, %+v, %v", n, res, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	_, err = Scan(ctx, disk, f, Options{}, func(Finding) bool { cancel(); return true })
	if tidemark.KindOf(err) != tidemark.Cancelled || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	var last int64
	_, err = Scan(context.Background(), disk, f, Options{Progress: func(done, total int64) {
		if done < last || done > total {
			t.Errorf("progress from %d to %d of %d", last, done, total)
		}
		last = done
	}}, func(Finding) bool { return true })
	if err != nil || last != disk.Size() {
		t.Errorf("progress ends at %d: %v", last, err)
	}
}

type broken struct{ memory }

var errBroken = errors.New("input/output error")

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off > 0 {
		return 0, errBroken
	}
	return b.memory.ReadAt(p, off)
}

func TestScanReadError(t *testing.T) {
	disk := broken{bytes.Repeat([]byte("x"), 9<<20)}
	if _, err := Scan(context.Background(), disk, prints(t, AsIs, "Mustermann"), Options{}, func(Finding) bool { return true }); !errors.Is(err, errBroken) {
		t.Errorf("read error: %v", err)
	}
}

func TestRefused(t *testing.T) {
	b, _ := NewBuilder(NewKey(), AsIs|Digits|Binary)
	refused, err := b.AddLines(strings.NewReader("Mustermann\r\nLi\n\n 東京 \nZoëZoë\nééé\n4111 1111 1111 1111"))
	if err != nil {
		t.Fatal(err)
	}
	var numbers []int
	for _, r := range refused {
		numbers = append(numbers, r.Number)
		if tidemark.KindOf(r.Reason) != tidemark.Invalid || strings.Contains(r.Reason.Error(), "Li") && r.Number == 2 && strings.Contains(r.Reason.Error(), " Li ") {
			t.Errorf("refused with %v", r.Reason)
		}
	}
	if !slices.Equal(numbers, []int{2, 4, 6}) {
		t.Errorf("refused %v", numbers)
	}
	if f := b.Fingerprints(); f.Values() != 7 {
		t.Errorf("%d values", f.Values())
	}
	for _, zeros := range []string{`\x000000000000000000`, "00000000-0000-0000-0000-000000000000"} {
		b, _ := NewBuilder(NewKey(), AsIs|Binary)
		if _, err := b.Add([]byte(zeros)); tidemark.KindOf(err) != tidemark.Invalid {
			t.Errorf("%s: %v", zeros, err)
		}
	}
	if _, err := NewBuilder(NewKey(), Digits); err == nil {
		t.Error("digits alone were taken")
	}
	if s := fmt.Sprintf("%v %+v %#v %s", NewKey(), NewKey(), NewKey(), NewKey()); s != "(key) (key) (key) (key)" {
		t.Errorf("a key prints as %s", s)
	}
	f := prints(t, AsIs, "Mustermann")
	if s := fmt.Sprintf("%v %+v %#v", f, f, f); s != strings.Repeat("(1 values, 3 patterns) ", 3)[:len(s)] {
		t.Errorf("fingerprints print as %s", s)
	}
}

func TestFilesOfFingerprints(t *testing.T) {
	rng := testRand(t)
	key := NewKey()
	b, _ := NewBuilder(key, Folded|Digits|Binary)
	var values []string
	for i := range 3000 {
		v, _ := plantable(rng, i+1, false)
		values = append(values, v)
		if _, err := b.Add([]byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	f := b.Fingerprints()
	var file bytes.Buffer
	if n, err := f.WriteTo(&file); err != nil || n != int64(file.Len()) {
		t.Fatalf("wrote %d of %d: %v", n, file.Len(), err)
	}
	for _, v := range values {
		if bytes.Contains(file.Bytes(), []byte(v)) {
			t.Fatal("a value is in the file")
		}
	}
	if bytes.Contains(file.Bytes(), key[:16]) {
		t.Fatal("the key is in the file")
	}
	again, err := Read(bytes.NewReader(file.Bytes()), key)
	if err != nil || again.Patterns() != f.Patterns() || again.Values() != f.Values() || !slices.Equal(again.text.entries, f.text.entries) {
		t.Fatalf("read: %v", err)
	}
	disk := memory("..." + values[0] + "..." + values[2999] + strings.Repeat(".", 100))
	one, _ := scan(t, disk, f, Options{Workers: 1})
	two, _ := scan(t, disk, again, Options{Workers: 1})
	if len(one) == 0 || !slices.Equal(one, two) {
		t.Errorf("read fingerprints find %v, written ones %v", two, one)
	}
	if _, err := Read(bytes.NewReader(file.Bytes()), NewKey()); tidemark.KindOf(err) != tidemark.Corrupt {
		t.Errorf("another key: %v", err)
	}
	for range 300 {
		bad := bytes.Clone(file.Bytes())
		if rng.IntN(3) == 0 {
			bad = bad[:rng.IntN(len(bad))]
		} else {
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
		}
		if _, err := Read(bytes.NewReader(bad), key); err == nil {
			t.Fatal("a damaged file was read")
		}
	}
}

// vectorKey is the key of the vector: bytes 0 to 31.
func vectorKey() (k Key) {
	for i := range k {
		k[i] = byte(i)
	}
	return k
}

var vectorValues = []string{"Erika Mustermann", "Müller", "4111 1111 1111 1111", "550e8400-e29b-41d4-a716-446655440000", `\xdeadbeefcafe00`, "+49 30 1234567"}

// TestVector reads the file of fingerprints that every version must be able to read, and writes the same again.
func TestVector(t *testing.T) {
	const name = "../../testdata/format/v1/fingerprints"
	b, _ := NewBuilder(vectorKey(), Folded|Digits|Binary)
	for _, v := range vectorValues {
		if _, err := b.Add([]byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	var now bytes.Buffer
	if _, err := b.Fingerprints().WriteTo(&now); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("TIDEMARK_WRITE_VECTORS") != "" {
		if err := os.WriteFile(name, now.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file, now.Bytes()) {
		t.Error("the same values give another file: a vector is kept for ever, and a change of format takes a version")
	}
	f, err := Read(bytes.NewReader(file), vectorKey())
	if err != nil {
		t.Fatal(err)
	}
	disk := memory("ERIKA MUSTERMANN, M\xdcLLER, 4111-1111-1111-1111, (49) 30/1234567, \xde\xad\xbe\xef\xca\xfe\x00, " +
		"\x55\x0e\x84\x00\xe2\x9b\x41\xd4\xa7\x16\x44\x66\x55\x44\x00\x00.")
	found := map[int]bool{}
	list, _ := scan(t, disk, f, Options{})
	for _, x := range list {
		found[x.Value] = true
	}
	if len(found) != len(vectorValues) {
		t.Errorf("found %v", list)
	}
}

// FuzzFingerprints reads anything, sealed as a file of fingerprints would be, and searches with what was taken.
func FuzzFingerprints(f *testing.F) {
	file, err := os.ReadFile("../../testdata/format/v1/fingerprints")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file[:len(file)-32], []byte("Erika Mustermann"))
	f.Add(file[:40], []byte("4111-1111-1111-1111"))
	f.Fuzz(func(t *testing.T, p, disk []byte) {
		mac := hmac.New(sha256.New, vectorKey().derive("file"))
		mac.Write(p)
		set, err := Read(bytes.NewReader(mac.Sum(p[:len(p):len(p)])), vectorKey())
		if err != nil {
			return
		}
		scan(t, memory(disk), set, Options{Workers: 1})
		var out bytes.Buffer
		if _, err := set.WriteTo(&out); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(&out, vectorKey()); err != nil {
			t.Fatalf("what was read and written is not read again: %v", err)
		}
	})
}

// FuzzScan gives anything to all decoders at once: no panic, and what is found plainly in the front is found whatever follows.
func FuzzScan(f *testing.F) {
	f.Add([]byte("\x42\x01\x00\x00\x00\x10\x00\x00\x00Erika Mustermann"))
	f.Add([]byte("\x42\x01\x00\x00\x00\x10\x00\x40\xf0\x00Erika Mustermann\x01\x00"))
	f.Add(append([]byte("\x10\xd1\x02\x00\x01\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00"), make([]byte, 60)...))
	f.Add([]byte("\x03\x00\x02\x08\x18\x00\x01\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00abcdefghijkl\x03\x00\x02\x08\x18\x00\x01\x00\x00\x00\x01\x00\x00\x00\x40\x00\x00\x00abcdefghijkl"))
	set := prints(f, Folded|Digits|Binary, "Erika Mustermann", "4111111111111111")
	f.Fuzz(func(t *testing.T, p []byte) {
		disk := make(memory, 512+len(p)+100)
		copy(disk, "ERIKA MUSTERMANN")
		copy(disk[512:], p)
		if got, _ := scan(t, disk, set, Options{Workers: 1}); !slices.ContainsFunc(got, func(f Finding) bool { return f.Offset == 0 && f.Value == 1 }) {
			t.Fatal("the value in front was not found")
		}
	})
}

// FuzzDecoders gives anything to the decoders and to the parser of WAL records.
func FuzzDecoders(f *testing.F) {
	f.Add([]byte("\x00abcdefgh\x01\x05\x03"), uint16(0xd110), uint32(100))
	f.Add([]byte("\x80abcdefgh\x01\x00\x20"), uint16(0xd10d), uint32(1<<20))
	set := prints(f, AsIs, "Erika Mustermann")
	f.Fuzz(func(t *testing.T, p []byte, magic uint16, size uint32) {
		w := newWorker(&scanner{prints: set})
		for _, img := range parseRecord(p, magic) {
			w.image(img)
		}
		for _, decode := range []func(*output, []byte){pglz, lz4} {
			n := 0
			w.out.reset(int(size%(1<<30)), func(buf []byte, from, to int) {
				if from < 0 || from > to || to > len(buf) {
					t.Fatalf("part %d to %d of %d", from, to, len(buf))
				}
				n += to - from
			})
			left := w.out.left
			decode(w.out, p)
			w.out.end()
			if n != left-w.out.left {
				t.Fatalf("%d bytes were decoded, %d handed over", left-w.out.left, n)
			}
		}
	})
}
