package remote

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"tidemark"
)

// Token lets one host join, once. It is a secret.
type Token struct {
	Host        string // that it is for
	Secret      string
	Fingerprint string // of the server's authority
}

// tokenPrefix begins a token, and says its version.
const tokenPrefix = "tidemark1"

// NewToken makes a token for a host.
func (a *Authority) NewToken(host string) Token {
	return Token{Host: host, Secret: rand.Text(), Fingerprint: a.Fingerprint()}
}

// String returns the token as it is handed over: one word.
func (t Token) String() string {
	return strings.Join([]string{tokenPrefix, t.Host, t.Secret, t.Fingerprint}, ":")
}

// Hash is what the server keeps of the token: nobody joins with that.
func (t Token) Hash() string {
	sum := sha256.Sum256([]byte(t.Secret))
	return hex.EncodeToString(sum[:])
}

// ParseToken reads what String returns.
func ParseToken(s string) (Token, error) {
	f := strings.Split(strings.TrimSpace(s), ":")
	if len(f) != 4 || f[0] != tokenPrefix || len(f[2]) < 20 || len(f[3]) != 2*sha256.Size {
		return Token{}, tidemark.Errorf(tidemark.Invalid, "this is no token for a host to join").WithHint("the server makes one: `tidemark host add NAME`")
	}
	if _, err := hex.DecodeString(f[3]); err != nil {
		return Token{}, tidemark.Errorf(tidemark.Invalid, "this is no token for a host to join").WithHint("the server makes one: `tidemark host add NAME`")
	}
	return Token{Host: f[1], Secret: f[2], Fingerprint: f[3]}, tidemark.CheckName(f[1])
}
