package delta

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

// dirAttr and fileAttr are of entries as they usually are.
var (
	dirAttr  = &Attr{Mode: unix.S_IFDIR | 0o755, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Inode: 1, Links: 1}
	fileAttr = &Attr{Mode: unix.S_IFREG | 0o644, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Size: 5, Inode: 2, Links: 1}
	hugeAttr = &Attr{Mode: unix.S_IFREG | 0o644, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Size: 1 << 60, Inode: 4, Links: 1}
	linkAttr = &Attr{Mode: unix.S_IFLNK | 0o777, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Inode: 3, Links: 1}
)

// enemy is a sender that says what a test likes.
type enemy struct {
	near  net.Conn // what Receive is given
	st    *stream
	ctx   context.Context // of a test that takes no longer than it should
	hello message
}

// newEnemy makes a sender that has said nothing yet, and ends with the test.
func newEnemy(t *testing.T) *enemy {
	t.Helper()
	near, far := net.Pipe()
	st, err := newStream(far)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.close)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	hello, err := json.Marshal(Hello{Line: "1", Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return &enemy{near, st, ctx, message{kind: msgHello, off: version, body: hello}}
}

// say has a sender say what it likes, and answers what is wanted with five bytes, but for data/silent; it returns what Receive makes of that.
func say(t *testing.T, staging string, list []message) error {
	t.Helper()
	e := newEnemy(t)
	ctx, st, near := e.ctx, e.st, e.near
	go func() {
		for _, m := range append([]message{e.hello}, list...) {
			if st.send(ctx, m) != nil {
				return
			}
		}
	}()
	go func() {
		for {
			m, err := st.receive()
			if err != nil {
				return
			}
			switch m.kind {
			case msgWant:
				if m.name == "data/silent" {
					continue
				}
				_ = st.send(ctx, message{kind: msgData, id: m.id, body: []byte("enemy")})
				_ = st.send(ctx, message{kind: msgEnd, id: m.id, attr: fileAttr})
			case msgNext:
				time.AfterFunc(500*time.Millisecond, func() { st.conn.Close() }) // it has had enough, when all was heard
			}
		}
	}()
	_, err := Receive(ctx, near, staging, Options{Tops: []string{"data"}}, nil)
	return err
}

// What makes no sense is refused; nothing beside the tree is written, whatever links there are.
func TestHostileSender(t *testing.T) {
	enter := func(name string) message { return message{kind: msgEnter, name: name, attr: dirAttr} }
	file := func(dir uint64, name string) message {
		return message{kind: msgFile, dir: dir, name: name, attr: fileAttr}
	}
	link := func(name, target string) message {
		return message{kind: msgLink, name: name, target: target, attr: linkAttr}
	}
	round := message{kind: msgRound, flag: 1}
	for name, c := range map[string]struct {
		list   []message
		refuse bool
	}{
		"a top that is not ours":       {[]message{enter(".tidemark")}, true},
		"a way up":                     {[]message{enter("data"), enter("data/../..")}, true},
		"an absolute path":             {[]message{enter("/etc")}, true},
		"a directory in none":          {[]message{enter("data"), enter("data/a/b")}, true},
		"a directory twice":            {[]message{enter("data"), enter("data/a"), enter("data/a")}, true},
		"a name with a way":            {[]message{enter("data"), file(0, "../x")}, true},
		"a name that is a directory":   {[]message{enter("data"), file(0, "..")}, true},
		"a name of nothing":            {[]message{enter("data"), file(0, "")}, true},
		"a directory of no number":     {[]message{enter("data"), file(7, "x")}, true},
		"a name twice":                 {[]message{enter("data"), file(0, "x"), file(0, "x")}, true},
		"a file with a link's mode":    {[]message{enter("data"), {kind: msgFile, name: "x", attr: linkAttr}}, true},
		"a file of no attributes":      {[]message{enter("data"), {kind: msgFile, name: "x"}}, true},
		"a file that nobody wanted":    {[]message{enter("data"), {kind: msgData, id: 9, body: []byte("x")}}, true},
		"an offer that nobody wanted":  {[]message{enter("data"), {kind: msgOffer, id: 9, body: make([]byte, 33)}}, true},
		"an end that nobody wanted":    {[]message{enter("data"), {kind: msgEnd, id: 9, attr: fileAttr}}, true},
		"a question":                   {[]message{{kind: msgWant, name: "data/x"}}, true},
		"more behind a round":          {[]message{enter("data"), file(0, "silent"), {kind: msgLeave, flag: 1}, round, enter("data")}, true},
		"a round in a round":           {[]message{enter("data"), file(0, "silent"), {kind: msgLeave, flag: 1}, round, round}, true},
		"an end before it was wanted":  {[]message{enter("data"), {kind: msgFile, name: "x", attr: hugeAttr}}, true},
		"an early end":                 {[]message{enter("data"), {kind: msgDone}}, true},
		"a hard link out of the tree":  {[]message{enter("data"), {kind: msgHard, name: "x", target: "../../etc/passwd"}, {kind: msgLeave, flag: 1}, round}, true},
		"a hard link to our own state": {[]message{enter("data"), {kind: msgHard, name: "x", target: ".tidemark/delta.json"}, {kind: msgLeave, flag: 1}, round}, true},
		"a link that is gone through":  {[]message{enter("data"), link("sub", "../outside"), enter("data/sub")}, true},
		"a directory that becomes a link": {[]message{enter("data"), enter("data/sub"), {kind: msgLeave, dir: 1, flag: 1}, {kind: msgLeave, flag: 1}, {kind: msgRound},
			enter("data"), link("sub", "../outside"), enter("data/sub"), file(1, "victim")}, true},
		"a link in place of the file": {[]message{enter("data"), file(0, "x"), {kind: msgLeave, flag: 1}, round}, false},
	} {
		t.Run(name, func(t *testing.T) {
			staging := t.TempDir()
			outside := filepath.Join(staging, "outside")
			victim := filepath.Join(outside, "victim")
			if err := os.MkdirAll(filepath.Join(staging, "data"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(outside, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
			// Of an earlier capture: a link where a file comes now.
			if err := os.Symlink("../outside/victim", filepath.Join(staging, "data", "x")); err != nil {
				t.Fatal(err)
			}
			err := say(t, staging, c.list)
			if refused := tidemark.KindOf(err) == tidemark.Invalid; err == nil || refused != c.refuse {
				t.Errorf("%v", err)
			}
			if got, _ := os.ReadFile(victim); string(got) != "mine" {
				t.Errorf("what is outside became %q", got)
			}
			if list, _ := os.ReadDir(outside); len(list) != 1 {
				t.Errorf("outside there is %v", list)
			}
			if !readState(staging).Dirty {
				t.Error("staging does not know that it is incomplete")
			}
		})
	}
}

// An answer to what was wanted that makes no sense is refused.
func TestHostileAnswer(t *testing.T) {
	for name, m := range map[string]message{
		"half an offer":             {kind: msgOffer, body: make([]byte, 20)},
		"an offer beyond all files": {kind: msgOffer, body: append(binary.AppendUvarint(nil, 1<<60), make([]byte, 32)...)},
		"an offer of too much":      {kind: msgOffer, body: make([]byte, 33*(offerOf+1))},
		"too many zeros":            {kind: msgZero, size: maxData + 1},
		"too much":                  {kind: msgData, body: make([]byte, maxData+1)},
		"an end that is too soon":   {kind: msgEnd, attr: linkAttr},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnemy(t)
			ctx, st, near := e.ctx, e.st, e.near
			for _, m := range []message{e.hello, {kind: msgEnter, name: "data", attr: dirAttr}, {kind: msgFile, name: "x", attr: fileAttr}} {
				if err := st.send(ctx, m); err != nil {
					t.Fatal(err)
				}
			}
			go func() {
				for {
					got, err := st.receive()
					if err != nil {
						return
					}
					if got.kind == msgWant {
						m.id = got.id
						_ = st.send(ctx, m)
					}
				}
			}()
			cache := t.TempDir()
			_, err := Receive(ctx, near, t.TempDir(), Options{Tops: []string{"data"}, Index: filepath.Join(cache, "index")}, nil)
			if tidemark.KindOf(err) != tidemark.Invalid {
				t.Errorf("%v", err)
			}
		})
	}
}

// What was dismissed leads nowhere: a link in a directory that is gone is not followed by what is gone later.
func TestHostileGone(t *testing.T) {
	enter := func(name string) message { return message{kind: msgEnter, name: name, attr: dirAttr} }
	leave := func(dir uint64) message { return message{kind: msgLeave, dir: dir, flag: 1} }
	for _, target := range []string{"../../../..", "../../../../data/live", "/etc", "../.."} {
		t.Run(target, func(t *testing.T) {
			staging := t.TempDir()
			live := filepath.Join(staging, "data", "live", "evil")
			if err := errors.Join(os.MkdirAll(filepath.Dir(live), 0o755), os.WriteFile(live, []byte("mine"), 0o600)); err != nil {
				t.Fatal(err)
			}
			evil := filepath.Join(staging, "data", "a", "sub", "evil")
			// Once with the link, once without its directory, once with a directory in its place, and without it again.
			keep := []message{enter("data/live"), {kind: msgKeep, dir: 1, name: "evil"}, leave(1)}
			rounds := [][]message{
				{enter("data"), keep[0], keep[1], keep[2], enter("data/a"), {kind: msgLink, dir: 2, name: "sub", target: target, attr: linkAttr}, leave(2), leave(0)},
				{enter("data"), keep[0], keep[1], keep[2], leave(0)},
				{enter("data"), keep[0], keep[1], keep[2], enter("data/a"), enter("data/a/sub"), {kind: msgKeep, dir: 3, name: "evil"}, leave(3), leave(2), leave(0)},
				{enter("data"), keep[0], keep[1], keep[2], enter("data/a"), enter("data/a/sub"), leave(3), leave(2), leave(0)},
			}
			if err := walk(t, staging, rounds, func(round int) {
				if round == 2 {
					if err := os.WriteFile(evil, []byte("evil"), 0o600); err != nil {
						t.Error(err)
					}
				}
			}); err != nil {
				t.Fatal(err)
			}
			if got, _ := os.ReadFile(live); string(got) != "mine" {
				t.Errorf("what is elsewhere became %q", got)
			}
			list, _ := os.ReadDir(staging)
			for _, e := range list {
				if e.Name() != "data" && e.Name() != ownDir {
					t.Errorf("there is %s", e.Name())
				}
			}
		})
	}
}

// walk has a sender tell rounds of a tree in which no file is wanted, and calls told behind each.
func walk(t *testing.T, staging string, rounds [][]message, told func(round int)) error {
	e := newEnemy(t)
	ctx, st, near := e.ctx, e.st, e.near
	go func() {
		_ = st.send(ctx, e.hello)
		for i, list := range rounds {
			for _, m := range append(list, message{kind: msgRound, flag: flag(i == len(rounds)-1)}) {
				_ = st.send(ctx, m)
			}
			for {
				m, err := st.receive()
				if err != nil {
					return
				}
				if m.kind == msgNext {
					break
				}
			}
			told(i)
		}
		_ = st.send(ctx, message{kind: msgDone, body: []byte("{}")})
		_ = st.finish()
		for {
			if m, err := st.receive(); err != nil || m.kind == msgNext {
				st.conn.Close()
				return
			}
		}
	}()
	_, err := Receive(ctx, near, staging, Options{Tops: []string{"data"}, Samples: -1, Index: filepath.Join(t.TempDir(), "index")}, nil)
	return err
}

func FuzzMessage(f *testing.F) {
	for _, m := range []message{
		{kind: msgHello, off: version, body: []byte(`{"line":"1"}`)},
		{kind: msgFile, dir: 3, name: "a", attr: &Attr{Mode: 0o100644, Size: 1 << 40, Modified: -1, Xattrs: map[string][]byte{"user.a": {1}}}},
		{kind: msgData, id: 1, off: 4096, body: []byte("bytes")},
		{kind: msgWant, id: 1, size: 1 << 30, name: "data/a", body: make([]byte, 32)},
	} {
		f.Add(m.append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, _, err := readMessage(bufio.NewReader(bytes.NewReader(b)), nil)
		if err != nil {
			return
		}
		again, _, err := readMessage(bufio.NewReader(bytes.NewReader(m.append(nil))), nil)
		if err != nil || !bytes.Equal(again.append(nil), m.append(nil)) {
			t.Errorf("%+v became %+v: %v", m, again, err)
		}
		if m.off < 0 || m.size < 0 || m.attr != nil && m.attr.Size < 0 {
			t.Errorf("a negative length: %+v", m)
		}
	})
}
