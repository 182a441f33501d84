package filesystem

import (
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
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

func discover(mountinfo, sys string) ([]Mounted, error) {
	text, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, err
	}
	var list []Mounted
	seen := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 3 || !strings.HasPrefix(g[1], "/dev/") {
			continue
		}
		m := Mounted{Dir: unescape.Replace(f[4]), Type: g[0], Device: unescape.Replace(g[1])}
		if f[3] != "/" && m.Type != "btrfs" || readOnly(g[2]) || seen[m.Device] {
			continue
		}
		seen[m.Device] = true
		m.Size = deviceSize(sys, m.Device)
		list = append(list, m)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Dir < list[j].Dir })
	return list, nil
}

func readOnly(options string) bool { return options == "ro" || strings.HasPrefix(options, "ro,") }

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

// unescape undoes the octal escapes of mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
