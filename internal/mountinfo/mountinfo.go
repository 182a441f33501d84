// Package mountinfo reads what the kernel says of what is mounted where: a file mountinfo of /proc, as proc_pid_mountinfo(5) describes it.
package mountinfo

import (
	"os"
	"slices"
	"strconv"
	"strings"
)

// Mount is one thing that is mounted.
type Mount struct {
	// Number is that of its device, such as 8:1. A file system that lies on none has one, too, and btrfs one of its own.
	Number string
	// Root is which part of its file system is shown: / is all of it.
	Root   string
	Dir    string
	Type   string
	Source string // the device or what else was named when it was mounted
	// ReadOnly is of this mount, and FSReadOnly of the file system: nothing can be written through the one, or at all.
	ReadOnly, FSReadOnly bool
}

// Read reads a file such as /proc/self/mountinfo: what a process can see, the latest mount last. Lines that are none are left out.
func Read(path string) (list []Mount, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if m, ok := parse(strings.TrimSuffix(line, "\n")); ok {
			list = append(list, m)
		}
	}
	return list, nil
}

// parse reads a line: ID, parent, number, root, directory, options, and further fields up to a -; then type, source, options of the file system.
func parse(line string) (m Mount, ok bool) {
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Split(before, " "), strings.Split(after, " ")
	if !ok || len(f) < 6 || len(g) < 3 {
		return m, false
	}
	return Mount{Number: f[2], Root: unescape(f[3]), Dir: unescape(f[4]), Type: unescape(g[0]), Source: unescape(g[1]), ReadOnly: hasRO(f[5]), FSReadOnly: hasRO(g[2])}, true
}

func hasRO(options string) bool { return slices.Contains(strings.Split(options, ","), "ro") }

// unescape undoes the escapes of the kernel, which writes blanks, backslashes and other bytes as \ and three octal digits.
func unescape(s string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '\\')
		if i < 0 {
			return b.String() + s
		}
		b.WriteString(s[:i])
		s = s[i:]
		n, err := strconv.ParseUint(s[1:min(4, len(s))], 8, 8)
		if len(s) < 4 || err != nil {
			b.WriteByte('\\')
			s = s[1:]
			continue
		}
		b.WriteByte(byte(n))
		s = s[4:]
	}
}
