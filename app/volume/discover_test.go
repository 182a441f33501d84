package volume

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDiscover(t *testing.T) {
	dir := write(t, map[string]string{
		"sys/sda/size": "2048\n", "sys/sda/dev": "8:0\n", "sys/sda/device/model": "DISK 1  \n", "sys/sda/sda1/partition": "1\n",
		"sys/sda1/size": "1024\n", "sys/sda1/dev": "8:1\n",
		"sys/sdb/size": "4096\n", "sys/sdb/dev": "8:16\n", "sys/sdb/holders/dm-0/x": "",
		"sys/sdc/size": "8\n", "sys/sdc/dev": "8:32\n", "sys/sdd/size": "8\n", "sys/sdd/dev": "8:48\n",
		"sys/loop0/size": "0\n", "sys/ram0/size": "8\n", "sys/sr0/size": "8\n", "sys/nbd3/size": "8\n",
		"sys/cciss!c0d0/size": "8\n", "sys/cciss!c0d0/dev": "104:0\n",
		"mountinfo": "21 1 8:1 / /a\\040b rw,relatime shared:1 - ext4 /dev/sda1 rw\n22 1 8:1 /x /bound rw - ext4 /dev/sda1 rw\nshort\n",
		"swaps":     "Filename\tType\n/dev/sdc partition 4 0 -2\n",
	})
	got, err := discover(filepath.Join(dir, "sys"), filepath.Join(dir, "mountinfo"), filepath.Join(dir, "swaps"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Device{{"/dev/cciss/c0d0", 4096, "", ""}, {"/dev/sda", 1 << 20, "DISK 1", "partitions"}, {"/dev/sda1", 512 << 10, "", "mounted on /a b"},
		{"/dev/sdb", 2 << 20, "", "held by dm-0"}, {"/dev/sdc", 4096, "", "swap"}, {"/dev/sdd", 4096, "", ""}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v\nwanted %+v", got, want)
	}
	if _, err := Discover(); err != nil { // of this host
		t.Error(err)
	}
}
