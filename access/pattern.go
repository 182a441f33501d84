package access

import (
	"strings"

	"tidemark"
)

// Pattern names one thing, or many: * stands for any run of bytes, ? for one
// byte, and everything else for itself. It has the alphabet of
// [tidemark.CheckName] beside these two.
type Pattern string

// ServerHost is the name that the server's own host has in patterns; no other host can have it.
const ServerHost = "@server"

// ParsePattern returns s as a pattern. Its error is of kind [tidemark.Invalid].
func ParsePattern(s string) (Pattern, error) {
	if s == ServerHost {
		return ServerHost, nil
	}
	if s == "" || len(s) > tidemark.MaxName {
		return "", tidemark.Errorf(tidemark.Invalid, "the pattern %q is empty or longer than %d bytes", shorten(s), tidemark.MaxName)
	}
	// What is left when each wildcard stands for a letter has to be a name.
	if err := tidemark.CheckName(strings.NewReplacer("*", "x", "?", "x").Replace(s)); err != nil {
		return "", tidemark.Errorf(tidemark.Invalid, "%q is no pattern of names", shorten(s)).
			WithHint("use letters, digits, '.', '_' and '-', with * for any run of them and ? for any one")
	}
	return Pattern(s), nil
}

// Exact reports that p names one thing.
func (p Pattern) Exact() bool { return !strings.ContainsAny(string(p), "*?") }

// Match reports whether p stands for s. It takes time in proportion to the
// product of both lengths at worst.
func (p Pattern) Match(s string) bool {
	// On a mismatch, the last * takes one byte more; earlier ones need not be tried again.
	i, j, star, mark := 0, 0, -1, 0
	for j < len(s) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == s[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(string(p[i:]), "*") == ""
}

func matchAny(list []Pattern, s string) bool {
	for _, p := range list {
		if p.Match(s) {
			return true
		}
	}
	return false
}

func exactly(list []Pattern, s string) bool {
	for _, p := range list {
		if p.Exact() && string(p) == s {
			return true
		}
	}
	return false
}

// MaxPatterns is how many patterns a scope, a limit or a token may have.
const MaxPatterns = 1000

func checkPatterns(list []Pattern) error {
	if len(list) > MaxPatterns {
		return tidemark.Errorf(tidemark.Invalid, "these are %d patterns, and at most %d are allowed", len(list), MaxPatterns).WithHint("a * stands for many names")
	}
	for _, p := range list {
		if _, err := ParsePattern(string(p)); err != nil {
			return err
		}
	}
	return nil
}
