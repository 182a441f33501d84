package access

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"tidemark"
)

func TestSecret(t *testing.T) {
	found := regexp.MustCompile(SecretRegexp)
	seen := map[string]bool{}
	for _, prefix := range []string{TokenPrefix, SessionPrefix} {
		for range 500 {
			s := NewSecret(prefix)
			text := s.Reveal()
			if seen[text] || len(text) != 53 || !strings.HasPrefix(text, prefix) {
				t.Fatalf("%q", text)
			}
			seen[text] = true
			if got := found.FindString("password=" + text + "; x"); got != text {
				t.Fatalf("a scanner finds %q of %q", got, text)
			}
			if again, err := ParseSecret(prefix, text); err != nil || again != s || again.Hash() != sha256.Sum256([]byte(text)) {
				t.Fatalf("%v", err)
			}
		}
	}
}

func TestSecretIsNotShown(t *testing.T) {
	s := NewSecret(TokenPrefix)
	j, err := json.Marshal(map[string]any{"a": s, "b": &s})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s)
	for _, text := range []string{fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s %q", s, s, s, s, s), fmt.Sprintf("%v", struct{ S Secret }{s}), string(j), log.String()} {
		if strings.Contains(text, s.Reveal()[8:20]) {
			t.Errorf("shown: %s", text)
		}
	}
}

func TestParseSecretRefuses(t *testing.T) {
	good := NewSecret(TokenPrefix).Reveal()
	for i := range good {
		for _, c := range []byte{'0', 'z', '-', 0, good[i] ^ 1} {
			if c == good[i] {
				continue
			}
			bad := good[:i] + string(c) + good[i+1:]
			if _, err := ParseSecret(TokenPrefix, bad); tidemark.KindOf(err) != tidemark.Denied || strings.Contains(err.Error(), bad[10:20]) {
				t.Fatalf("byte %d as %q: %v", i, c, err)
			}
		}
	}
	large := TokenPrefix + strings.Repeat("z", secretDigits) // more than 256 bits
	for _, bad := range []string{"", good[:52], good + "0", " " + good, large + checksum(large), "tms_" + good[4:]} {
		if _, err := ParseSecret(TokenPrefix, bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if _, err := ParseSecret(SessionPrefix, good); err == nil {
		t.Error("a token is a session")
	}
}

func FuzzParseSecret(f *testing.F) {
	f.Add(NewSecret(TokenPrefix).Reveal())
	f.Add(TokenPrefix + strings.Repeat("0", 49))
	f.Add(TokenPrefix + strings.Repeat("z", 49))
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSecret(TokenPrefix, text)
		if (err == nil) != (s.Reveal() == text && text != "") {
			t.Fatalf("%q: %v", text, err)
		}
		if err == nil && !regexp.MustCompile("^"+SecretRegexp+"$").MatchString(text) {
			t.Fatalf("%q is a secret, and no scanner finds it", text)
		}
	})
}

func FuzzHash(f *testing.F) {
	f.Add(Hash{}.String())
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseHash(s)
		if err == nil && h.String() != strings.ToLower(s) {
			t.Fatalf("%q is %s", s, h)
		}
		if err == nil && !h.Equal(h) {
			t.Fatal("a hash differs from itself")
		}
	})
}

func TestTokenCheck(t *testing.T) {
	now := time.Now()
	good := Token{User: "alice", Name: "ci", Roles: []Role{Owner}, Applications: []Pattern{"x*"}, Created: now, Expires: now.Add(time.Hour)}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Token){
		"no user":     func(t *Token) { t.User = "" },
		"no name":     func(t *Token) { t.Name = "" },
		"bad role":    func(t *Token) { t.Roles = []Role{"root"} },
		"bad pattern": func(t *Token) { t.Applications = []Pattern{"["} },
		"never ends":  func(t *Token) { t.Expires = time.Time{} },
		"over":        func(t *Token) { t.Expires = now },
		"too long":    func(t *Token) { t.Expires = now.Add(MaxTokenLife + 1) },
	} {
		bad := good
		change(&bad)
		if err := bad.Check(); tidemark.KindOf(err) != tidemark.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzPattern(f *testing.F) {
	for _, s := range []string{"*", "a*b?c", "orders", "@server", "", "**a**", "*-*", "a/b", "[a]"} {
		f.Add(s, "orders-1")
	}
	f.Add("a*a*a*a*a*a*a*a*a*a*a*a*b", strings.Repeat("a", 5000))
	f.Fuzz(func(t *testing.T, text, name string) {
		p, err := ParsePattern(text)
		if err != nil {
			if tidemark.KindOf(err) != tidemark.Invalid || len(err.Error()) > 600 {
				t.Fatalf("%v", err)
			}
			return
		}
		if string(p) != text || p.Exact() && p.Match(name) != (text == name) {
			t.Fatalf("%q is %q", text, p)
		}
		// Names are ASCII; in other text ? is a byte here, and a character there.
		if tidemark.CheckName(name) == nil && p.Match(name) != glob(p).MatchString(name) {
			t.Fatalf("%q matches %q: %v", p, name, p.Match(name))
		}
		p.Match(name)
	})
}

// FuzzGrant holds that a grant that can be stored is what it was when it is read, and that Decide never panics.
func FuzzGrant(f *testing.F) {
	f.Add(`{"subject":{"kind":"user","name":"alice"},"role":"developer","scope":{"kind":"applications","names":["o*"]},"limits":{"clones":-1,"points":{"any":true}}}`)
	f.Add(`{"subject":{"kind":"group","name":"/a b"},"role":"admin","scope":{"kind":"everything"}}`)
	f.Add(`{"role":"root","limits":{"clones":-9}}`)
	f.Fuzz(func(t *testing.T, text string) {
		var g Grant
		if json.Unmarshal([]byte(text), &g) != nil {
			return
		}
		p := Principal{User: g.Subject.Name, Groups: []string{g.Subject.Name}, Method: ByPassword}
		for _, a := range []Action{ApplicationClone, HostUse, TokenManage, GroupView} {
			o := Object{Kind: a.Kinds()[0], Name: "orders", Host: "h", Source: "s", Members: []string{"m"}}
			d := Decide(p, []Grant{g}, a, o)
			if d.Allowed && g.Check() != nil {
				t.Fatalf("%s allows something: %v", text, g.Check())
			}
			d.Within(Usage{Clones: 1}, Copy{New: 1, Host: "h"})
		}
		if g.Check() != nil {
			return
		}
		again, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		var h Grant
		if err := json.Unmarshal(again, &h); err != nil || fmt.Sprint(g) != fmt.Sprint(h) {
			t.Fatalf("%+v is read as %+v, %v", g, h, err)
		}
	})
}

func TestSubjects(t *testing.T) {
	for s, want := range map[string][2]bool{
		"alice": {true, true}, "alice@example.org": {true, true}, "/corp/dev team": {false, true}, "a:b": {false, true},
		"": {}, "-x": {}, "@x": {}, "a\x00": {}, "a\n": {}, "ä": {}, strings.Repeat("a", 129): {}, " a": {},
	} {
		if got := [2]bool{CheckUser(s) == nil, CheckGroup(s) == nil}; got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}
