package object

import (
	"fmt"
	"strings"
)

// MaxKey is the longest key in bytes.
const MaxKey = 512

// CheckKey returns an error that wraps [ErrBadKey] unless key can name an
// object: parts of a-z 0-9 . _ - joined by slashes, none empty or beginning with
// a dot. Such a key can never lead out of a directory.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey {
		return fmt.Errorf("%w: %d bytes long", ErrBadKey, len(key))
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part[0] == '.' || strings.ContainsFunc(part, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
		}) {
			return fmt.Errorf("%w: %q", ErrBadKey, key)
		}
	}
	return nil
}
