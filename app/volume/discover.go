package volume

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"tidemark/internal/mountinfo"
)

// Device is a block device of this host.
type Device struct {
	Path  string `json:"path"`
	Size  int64  `json:"size"`
	Model string `json:"model,omitempty"` // as the hardware says
	// Use is what has it: "mounted on /srv", "swap", "partitions", "held by dm-0"; empty: nobody, as far as the kernel says without asking the device.
	Use string `json:"use,omitempty"`
}

// passing are devices that hold nothing to be kept.
var passing = []string{"ram", "zram", "sr", "fd", "nbd"}

// Discover lists the block devices of this host that have a size, by path, but for those that hold nothing to be kept: memory, optical discs, and
// disks over NBD. It reads nothing from a device: one whose server is gone would not answer.
func Discover() ([]Device, error) {
	return discover("/sys/class/block", "/proc/self/mountinfo", "/proc/swaps")
}

func discover(sys, info, swaps string) ([]Device, error) {
	names, err := os.ReadDir(sys)
	if err != nil {
		return nil, err
	}
	mounted, err := mountedOn(info)
	if err != nil {
		return nil, err
	}
	swap := word(swaps)
	var list []Device
	for _, e := range names {
		name, dir := e.Name(), filepath.Join(sys, e.Name())
		sectors, err := strconv.ParseInt(strings.TrimSpace(word(filepath.Join(dir, "size"))), 10, 64)
		if err != nil || sectors <= 0 || slices.ContainsFunc(passing, func(p string) bool { return isOne(name, p) }) {
			continue
		}
		d := Device{Path: "/dev/" + strings.ReplaceAll(name, "!", "/"), Size: sectors * 512, Model: strings.TrimSpace(word(filepath.Join(dir, "device", "model")))}
		if at := mounted[strings.TrimSpace(word(filepath.Join(dir, "dev")))]; at != "" {
			d.Use = "mounted on " + at
		} else if strings.Contains(swap, "\n"+d.Path+" ") || strings.Contains(swap, "\n"+d.Path+"\t") {
			d.Use = "swap"
		} else {
			d.Use = kernelUse(dir, name)
		}
		list = append(list, d)
	}
	return list, nil
}

// isOne reports whether a name is a prefix and a number.
func isOne(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	_, err := strconv.Atoi(rest)
	return ok && err == nil
}

// kernelUse says what of the kernel's own has a device.
func kernelUse(dir, name string) string {
	if holders, err := os.ReadDir(filepath.Join(dir, "holders")); err == nil && len(holders) > 0 {
		return "held by " + holders[0].Name()
	}
	if parts, err := filepath.Glob(filepath.Join(dir, name+"*", "partition")); err == nil && len(parts) > 0 {
		return "partitions"
	}
	return ""
}

// mountedOn finds where devices are mounted first, by their numbers.
func mountedOn(info string) (map[string]string, error) {
	all, err := mountinfo.Read(info)
	at := map[string]string{}
	for _, m := range all {
		if at[m.Number] == "" {
			at[m.Number] = m.Dir
		}
	}
	return at, err
}

// word is the text of a small file, empty if there is none.
func word(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}
