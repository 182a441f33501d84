package filesystem

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestDiscover(t *testing.T) {
	dir := t.TempDir()
	info := filepath.Join(dir, "mountinfo")
	text := `21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/tmtest1 rw
22 1 8:2 / /srv/a\040b rw - xfs /dev/tmtest2 rw,nouuid
23 1 8:2 /part /bound rw - xfs /dev/tmtest2 rw
24 1 7:0 / /snap/x ro - squashfs /dev/loop7 ro
25 1 0:40 / /proc rw - proc proc rw
26 1 0:44 /@home /home rw - btrfs /dev/tmtest3 rw,subvol=/@home
nonsense
27 1 8:9 / /only rw - ext4
`
	if err := os.WriteFile(info, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "tmtest2"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tmtest2", "size"), []byte("2048\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := discover(info, dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []Mounted{{"/", "ext4", "/dev/tmtest1", 0}, {"/home", "btrfs", "/dev/tmtest3", 0}, {"/srv/a b", "xfs", "/dev/tmtest2", 1 << 20}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v\nwanted %+v", got, want)
	}
	if _, err := Discover(); err != nil { // of this host
		t.Error(err)
	}
}
