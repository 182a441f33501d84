package access

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/alexedwards/argon2id"

	"tidemark"
)

// The lengths of a password: fewer characters than MinPassword are too easy to
// guess, and more bytes than MaxPassword are no password. NIST SP 800-63B asks
// for no rules of composition, and so there are none.
const (
	MinPassword = 12
	MaxPassword = 1024
)

// cost is that of a hash: 64 MiB, one pass, two lanes (RFC 9106 has the same
// memory and more passes for its second choice; this takes a tenth of a second).
var cost = argon2id.Params{Memory: 64 << 10, Iterations: 1, Parallelism: 2, SaltLength: 16, KeyLength: 32}

// Bounds of what a stored hash may ask for, so that nobody who can write to the
// catalog can take all the memory of the server.
const (
	mostMemory     = 256 << 10 // KiB
	mostIterations = 10
)

// Passwords hashes passwords with Argon2id, and compares them. At most so many
// hashes are computed at a time, for each takes 64 MiB: who asks at the wrong
// moment waits, until his context ends. It may be used concurrently.
type Passwords struct {
	slots chan struct{}
	decoy string // a hash of what nobody knows
}

// NewPasswords returns one that computes at most n hashes at a time; 0 stands
// for as many as there are processors, and at most 4.
func NewPasswords(n int) (*Passwords, error) {
	if n <= 0 {
		n = min(runtime.GOMAXPROCS(0), 4)
	}
	raw := make([]byte, 32)
	rand.Read(raw)
	decoy, err := argon2id.CreateHash(hex.EncodeToString(raw), &cost)
	if err != nil {
		return nil, err
	}
	return &Passwords{slots: make(chan struct{}, n), decoy: decoy}, nil
}

// Hash checks that a password is good enough for a user, and hashes it. The
// text that it returns has the salt and the cost in it (the PHC string format).
func (p *Passwords) Hash(ctx context.Context, user, password string) (string, error) {
	if err := CheckPassword(user, password); err != nil {
		return "", err
	}
	if err := p.enter(ctx); err != nil {
		return "", err
	}
	defer p.leave()
	return argon2id.CreateHash(password, &cost)
}

// Verify reports whether the password is the one that was hashed. An empty
// hash stands for a user that there is not, or who has no password: it takes the
// same time, and is false. renew reports that it was right, but hashed at another
// cost than new ones are: the caller should store a new hash.
func (p *Passwords) Verify(ctx context.Context, hash, password string) (ok, renew bool, err error) {
	if len(password) > MaxPassword {
		return false, false, nil // nobody has such a one
	}
	against := hash
	if hash == "" {
		against = p.decoy
	}
	params, err := checkHash(against)
	if err != nil {
		return false, false, err
	}
	if err := p.enter(ctx); err != nil {
		return false, false, err
	}
	defer p.leave()
	same, err := argon2id.ComparePasswordAndHash(password, against)
	if err != nil {
		return false, false, tidemark.Errorf(tidemark.Corrupt, "a stored hash of a password cannot be read")
	}
	ok = same && hash != ""
	return ok, ok && *params != cost, nil
}

func checkHash(hash string) (*argon2id.Params, error) {
	params, _, _, err := argon2id.DecodeHash(hash)
	if err != nil || params.Memory > mostMemory || params.Iterations > mostIterations ||
		params.Iterations == 0 || params.Parallelism == 0 || params.KeyLength < 16 || params.KeyLength > 64 {
		return nil, tidemark.Errorf(tidemark.Corrupt, "a stored hash of a password cannot be read").WithHint("set the password anew at the server's socket")
	}
	return params, nil
}

func (p *Passwords) enter(ctx context.Context) error {
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return tidemark.Errorf(tidemark.Unavailable, "too many people log in at once").WithHint("try again in a moment")
	}
}

func (p *Passwords) leave() { <-p.slots }

// CheckPassword returns an error of kind [tidemark.Invalid] if a password is too
// short, too long, no text, or what is guessed first: one of a list of common
// ones, a few characters over and over, or the user's own name with something
// around it. The error does not repeat it.
func CheckPassword(user, password string) error {
	weak := func(why string) error {
		return tidemark.Errorf(tidemark.Invalid, "the password %s", why).WithHint("a few words that do not belong together make a good one")
	}
	switch {
	case !utf8.ValidString(password) || strings.ContainsRune(password, 0):
		return weak("is no text")
	case utf8.RuneCountInString(password) < MinPassword:
		return tidemark.Errorf(tidemark.Invalid, "the password has fewer than %d characters", MinPassword)
	case len(password) > MaxPassword:
		return tidemark.Errorf(tidemark.Invalid, "the password has more than %d bytes", MaxPassword)
	case distinct(password) < 5:
		return weak("is a few characters over and over")
	}
	low := strings.ToLower(password)
	if slices.Contains(common12, low) {
		return weak("is one that everybody tries")
	}
	if rest := strings.ReplaceAll(low, strings.ToLower(user), ""); user != "" && len(rest) < MinPassword/2 {
		return weak("is little more than the user's name")
	}
	return nil
}

func distinct(s string) int {
	seen := map[rune]bool{}
	for _, r := range s {
		seen[r] = true
	}
	return len(seen)
}

// common12 are passwords of at least [MinPassword] characters that lists of leaked ones have at their top.
var common12 = []string{
	"123456789012", "1234567890123", "12345678901234", "123456789012345", "1234567890qwerty", "0123456789ab", "0123456789abcdef",
	"1q2w3e4r5t6y", "1q2w3e4r5t6y7u", "1q2w3e4r5t6y7u8i9o0p", "1qaz2wsx3edc", "1qaz2wsx3edc4rfv", "q1w2e3r4t5y6", "zaq12wsxcde3",
	"qwertyuiop12", "qwertyuiop123", "qwertyuiop[]", "qwertyuiopasdfghjkl", "qwerty123456", "qwerty1234567", "asdfghjkl123", "abcdefghijkl", "abcdefghijklm", "abcdefgh1234",
	"password1234", "password12345", "password123456", "password123!", "password2024", "password2025", "password2026", "passwordpassword", "p@ssw0rd1234", "p@ssword1234", "mypassword123",
	"administrator", "administrator1", "administrator123", "admin1234567", "adminadmin123", "changeme1234", "changemeplease", "letmein12345", "letmeinplease", "welcome12345", "welcome123456",
	"iloveyou1234", "iloveyou12345", "correcthorsebatterystaple", "correct horse battery staple", "trustno1trustno1", "tidemarktidemark", "tidemark1234",
}
