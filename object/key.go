package object

import (
	"fmt"
	"strings"
)

// MaxKey is the longest key allowed, in bytes; S3 allows 1024, file systems 255 a part.
const MaxKey = 512

// maxPart is the longest part of a key between slashes: the limit of most file systems.
const maxPart = 200

// CheckKey returns an error that wraps [ErrBadKey] unless key is allowed: parts
// of [a-z0-9._-] that do not begin with a dot, between single slashes. Such a key
// cannot leave a directory, on any system.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey {
		return fmt.Errorf("%w: %d bytes long", ErrBadKey, len(key))
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part[0] == '.' || len(part) > maxPart || !plain(part) {
			return fmt.Errorf("%w: %q", ErrBadKey, key)
		}
	}
	return nil
}

func plain(part string) bool {
	for _, c := range []byte(part) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}
