package access

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"hash/crc32"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"time"

	"tidemark"
)

// The prefixes of secrets. They and the checksum let scanners of source code
// find one that leaked, without asking a server: [SecretRegexp].
const (
	TokenPrefix   = "tmk_" // an API token
	SessionPrefix = "tms_" // a session
)

// SecretRegexp finds secrets in text. Whether one is real, [ParseSecret] says.
const SecretRegexp = `\btm[ks]_[0-9A-Za-z]{49}\b`

const (
	secretBytes = 32
	// 62^43 is the first power over 2^256, and 62^6 over 2^32.
	secretDigits = 43
	sumDigits    = 6
	alphabet     = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// Secret is what the holder of a token or session shows: 32 random bytes. It
// is shown once, to him; kept is its [Secret.Hash]. It does not print:
// [Secret.Reveal] gives the text, and is to be searched for in reviews.
type Secret struct{ text string }

// NewSecret makes a secret with a prefix, [TokenPrefix] or [SessionPrefix].
func NewSecret(prefix string) Secret {
	raw := make([]byte, secretBytes)
	rand.Read(raw) // never fails: the program ends first
	body := base62(new(big.Int).SetBytes(raw), secretDigits)
	return Secret{prefix + body + checksum(prefix+body)}
}

// ParseSecret reads a secret that somebody showed. That it is well formed says
// nothing about whom it belongs to. The error is of kind [tidemark.Denied], and
// does not repeat the secret.
func ParseSecret(prefix, s string) (Secret, error) {
	wrong := tidemark.Errorf(tidemark.Denied, "this is no secret of the form %s…", prefix).WithHint("was it copied as a whole?")
	body, ok := strings.CutPrefix(s, prefix)
	if !ok || len(body) != secretDigits+sumDigits {
		return Secret{}, wrong
	}
	body = body[:secretDigits]
	n := new(big.Int)
	for i := range len(body) {
		d := strings.IndexByte(alphabet, body[i])
		if d < 0 {
			return Secret{}, wrong
		}
		n.Add(n.Mul(n, big.NewInt(62)), big.NewInt(int64(d)))
	}
	if n.BitLen() > 8*secretBytes || prefix+body+checksum(prefix+body) != s {
		return Secret{}, wrong
	}
	return Secret{s}, nil
}

func base62(n *big.Int, digits int) string {
	out := make([]byte, digits)
	n, d := new(big.Int).Set(n), new(big.Int)
	for i := digits - 1; i >= 0; i-- {
		n.DivMod(n, big.NewInt(62), d)
		out[i] = alphabet[d.Int64()]
	}
	return string(out)
}

func checksum(s string) string {
	return base62(big.NewInt(int64(crc32.ChecksumIEEE([]byte(s)))), sumDigits)
}

// Reveal returns the text of the secret.
func (s Secret) Reveal() string { return s.text }

// String does not return the secret.
func (s Secret) String() string { return "secret" }

// GoString does not return the secret either.
func (s Secret) GoString() string { return "access.Secret{}" }

// LogValue keeps the secret out of logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue("secret") }

// MarshalText keeps the secret out of JSON.
func (s Secret) MarshalText() ([]byte, error) { return []byte("secret"), nil }

// Hash is what is kept in place of the secret, and what it is found by: SHA-256
// of its text. A slow hash is for what people choose; nobody guesses 256 random
// bits. And since who guesses does not choose the hash, how long a database
// looks for it tells him nothing.
func (s Secret) Hash() Hash { return sha256.Sum256([]byte(s.text)) }

// Hash is the SHA-256 of a secret. It prints as 64 hex digits.
type Hash [sha256.Size]byte

// String is h in hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Equal compares in a time that does not depend on where they differ.
func (h Hash) Equal(o Hash) bool { return subtle.ConstantTimeCompare(h[:], o[:]) == 1 }

// ParseHash reads what [Hash.String] wrote. Its error is of kind [tidemark.Corrupt].
func ParseHash(s string) (h Hash, err error) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(h) {
		return h, tidemark.Errorf(tidemark.Corrupt, "a hash has %d hex digits", 2*len(h))
	}
	copy(h[:], raw)
	return h, nil
}

// MaxTokenLife is how long an API token lives at most. One that never ends is one that nobody remembers.
const MaxTokenLife = 366 * 24 * time.Hour

// Token is an API token: it acts for its user, with a part of his rights. What
// it may do is what its user may do now and, if they are not empty, what one of
// Roles may do, to what belongs to one of Applications.
type Token struct {
	ID   int64  `json:"id"`
	User string `json:"user"`
	Name string `json:"name"` // what its user calls it
	// Roles and Applications narrow the rights. With Applications, it reaches
	// nothing that is not an application or made of one, but what everybody sees.
	Roles        []Role    `json:"roles,omitempty"`
	Applications []Pattern `json:"applications,omitempty"`
	Created      time.Time `json:"created"`
	Expires      time.Time `json:"expires"`
	// Used is when it was used last, to the minute; zero: never.
	Used time.Time `json:"used,omitzero"`
}

// Check returns an error of kind [tidemark.Invalid] unless t is well formed.
func (t Token) Check() error {
	if err := CheckUser(t.User); err != nil {
		return err
	}
	if err := tidemark.CheckName(t.Name); err != nil {
		return err
	}
	for _, r := range t.Roles {
		if _, err := ParseRole(string(r)); err != nil {
			return err
		}
	}
	if life := t.Expires.Sub(t.Created); life <= 0 || life > MaxTokenLife {
		return tidemark.Errorf(tidemark.Invalid, "a token expires, within %d days", int(MaxTokenLife.Hours()/24))
	}
	return checkPatterns(t.Applications)
}

// level is how far the token lets an action go.
func (t *Token) level(a Action) Level {
	if len(t.Roles) == 0 {
		return All
	}
	l := None
	for _, r := range t.Roles {
		l = max(l, r.Level(a))
	}
	return l
}

// NarrowsAs reports whether t leaves the same of its user's rights as o. No token, nil, leaves all of them.
func (t *Token) NarrowsAs(o *Token) bool {
	var none Token
	t, o = cmp.Or(t, &none), cmp.Or(o, &none)
	return slices.Equal(t.Roles, o.Roles) && slices.Equal(t.Applications, o.Applications)
}

// String is the name of the token; of none, it is empty.
func (t *Token) String() string {
	if t == nil {
		return ""
	}
	return t.Name
}

// Session is a login that lasts.
type Session struct {
	ID      int64     `json:"id"`
	User    string    `json:"user"`
	Method  Method    `json:"method"`            // [ByPassword] or [ByOIDC]
	Address string    `json:"address,omitempty"` // from where it began
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Used    time.Time `json:"used"` // to the minute
	// Idle is how long it lasts unused.
	Idle time.Duration `json:"idle_ns"`
}

// Valid reports whether the session can be used at a time. The catalog notes
// uses by the minute, so that Idle is meant with this grain.
func (s Session) Valid(now time.Time) bool {
	return now.Before(s.Expires) && now.Sub(s.Used) <= s.Idle
}
