package app

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ReadXattrs returns all extended attributes of a path, ACLs and capabilities among them; none where there can be none. A link is not followed.
func ReadXattrs(path string) (map[string][]byte, error) {
	list := make([]byte, 1024)
	n, err := unix.Llistxattr(path, list)
	if errors.Is(err, unix.ERANGE) {
		list = make([]byte, 64<<10) // the kernel's limit
		n, err = unix.Llistxattr(path, list)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	all := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read attribute %s: %w", name, err)
		}
		all[name] = value[:n:n]
	}
	return all, nil
}

// SetXattrs makes the extended attributes of a path those that are wanted. cannot is told of each that its file system, or our rights, do not allow.
func SetXattrs(path string, want map[string][]byte, cannot func(name string, why error)) error {
	have, err := ReadXattrs(path)
	if err != nil {
		return err
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			if err := unix.Lremovexattr(path, k); err != nil && !errors.Is(err, unix.ENODATA) {
				return fmt.Errorf("remove attribute %s: %w", k, err)
			}
		}
	}
	for k, v := range want {
		if old, ok := have[k]; ok && bytes.Equal(old, v) {
			continue
		}
		err := unix.Lsetxattr(path, k, v, 0)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
			cannot(k, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("set attribute %s: %w", k, err)
		}
	}
	return nil
}
