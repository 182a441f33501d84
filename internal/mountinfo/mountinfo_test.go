package mountinfo

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mountinfo")
	text := `21 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw
22 1 0:44 /@a\040b /a\040\011\012\134\043\040-\040b ro,nosuid - btrfs /dev/x\040y rw,subvol=/@a
23 1 7:0 / /snap rw - squashfs /dev/loop7 ro,errors=continue
24 1 0:50 / /empty rw -  tmpfs rw
25 1 0:51 / /none rw - tmpfs  rw
nonsense
26 1 8:9 / /short rw - ext4
27 1 8:9 / /short rw ext4 - rw
28 1 8:9 / /odd\04 rw - ext4 \999\4 rw`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	want := []Mount{
		{"8:1", "/", "/", "ext4", "/dev/sda1", false, false},
		{"0:44", "/@a b", "/a \t\n\\# - b", "btrfs", "/dev/x y", true, false},
		{"7:0", "/", "/snap", "squashfs", "/dev/loop7", false, true},
		{"0:50", "/", "/empty", "", "tmpfs", false, false},
		{"0:51", "/", "/none", "tmpfs", "", false, false},
		{"8:9", "/", `/odd\04`, "ext4", `\999\4`, false, false},
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v\nwanted %+v", got, want)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there was read")
	}
	ours, err := Read("/proc/self/mountinfo")
	if err != nil || !slices.ContainsFunc(ours, func(m Mount) bool { return m.Dir == "/" && m.Type != "" }) {
		t.Errorf("of this host: %+v, %v", ours, err)
	}
}

// FuzzParse holds that what the kernel escapes is what it was, and that nothing else stops it.
func FuzzParse(f *testing.F) {
	f.Add("a b\t\\#")
	f.Add(`\040 - - \`)
	f.Fuzz(func(t *testing.T, name string) {
		parse(name)
		escape := func(s string) string { // as seq_path does
			var b strings.Builder
			for _, c := range []byte(s) {
				if strings.IndexByte(" \t\n\\#", c) >= 0 {
					fmt.Fprintf(&b, "\\%03o", c)
				} else {
					b.WriteByte(c)
				}
			}
			return b.String()
		}
		m, ok := parse("1 2 8:1 / /" + escape(name) + " ro shared:1 - ext4 " + escape(name) + " rw")
		if !ok || m.Dir != "/"+name || m.Source != name || !m.ReadOnly || m.FSReadOnly {
			t.Errorf("%q is read as %+v", name, m)
		}
	})
}
