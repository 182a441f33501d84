package filesystem

import (
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"tidemark/internal/mountinfo"
)

// Mounted is a file system of this host that lies on a block device.
type Mounted struct {
	Dir    string `json:"dir"`  // where all of it is mounted
	Type   string `json:"type"` // as the kernel calls it
	Device string `json:"device"`
	Size   int64  `json:"size"` // of the device, in bytes; 0: not known
}

// Discover lists the file systems of this host that lie on block devices and can be written, by directory; those of images that are only read, and
// parts that are bound to other places, are left out. It touches none of them: one whose disk hangs would not answer.
func Discover() ([]Mounted, error) { return discover("/proc/self/mountinfo", "/sys/class/block") }

func discover(info, sys string) ([]Mounted, error) {
	all, err := mountinfo.Read(info)
	if err != nil {
		return nil, err
	}
	var list []Mounted
	seen := map[string]bool{}
	for _, m := range all {
		if !strings.HasPrefix(m.Source, "/dev/") || m.Root != "/" && m.Type != "btrfs" || m.FSReadOnly || seen[m.Source] {
			continue
		}
		seen[m.Source] = true
		list = append(list, Mounted{Dir: m.Dir, Type: m.Type, Device: m.Source, Size: deviceSize(sys, m.Source)})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Dir < list[j].Dir })
	return list, nil
}

// deviceSize asks the kernel for the size of a device, which may be named by a link.
func deviceSize(sys, device string) int64 {
	if real, err := filepath.EvalSymlinks(device); err == nil {
		device = real
	}
	text, err := os.ReadFile(filepath.Join(sys, filepath.Base(device), "size"))
	if err != nil {
		return 0
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || sectors < 0 {
		return 0
	}
	return sectors * 512
}
