package tidemark

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// MaxSize is the largest disk, in bytes (64 PiB): far above what is sold, far
// below where offsets overflow.
const MaxSize = 1 << 56

var sizeUnits = map[string]uint{"": 0, "b": 0, "k": 10, "kib": 10, "m": 20, "mib": 20, "g": 30, "gib": 30, "t": 40, "tib": 40, "p": 50, "pib": 50}

// ParseSize reads a size in bytes: a whole number and an optional binary unit
// (K, M, G, T, P or KiB, MiB, …, in any case). Decimal units such as MB are
// refused, because users mean both.
func ParseSize(s string) (int64, error) {
	t := strings.TrimSpace(s)
	i := 0
	for i < len(t) && t[i] >= '0' && t[i] <= '9' {
		i++
	}
	shift, ok := sizeUnits[strings.ToLower(strings.TrimSpace(t[i:]))]
	n, err := strconv.ParseUint(t[:i], 10, 64)
	if !ok || i == 0 {
		return 0, Errorf(Invalid, "%q is not a size", s).WithHint("write a whole number of bytes with an optional unit, such as 10GiB or 64KiB")
	}
	if err != nil || bits.Len64(n)+int(shift) > 57 || n<<shift > MaxSize {
		return 0, Errorf(Invalid, "the size %s is too large", s).WithHint("at most 64PiB")
	}
	return int64(n << shift), nil
}

// FormatSize prints a size for people, in binary units.
func FormatSize(n int64) string {
	if n < 0 {
		return "-" + FormatSize(-n)
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	v, u := float64(n), 0
	for v >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	switch {
	case u == 0:
		return fmt.Sprintf("%d B", n)
	case v < 10:
		return fmt.Sprintf("%.2f %s", v, units[u])
	case v < 100:
		return fmt.Sprintf("%.1f %s", v, units[u])
	}
	return fmt.Sprintf("%.0f %s", v, units[u])
}

// CheckDiskSize returns an error of kind [Invalid] unless n can be the size of a disk.
func CheckDiskSize(n int64) error {
	switch {
	case n <= 0:
		return Errorf(Invalid, "a disk of %d bytes cannot be made", n).WithHint("give a size such as 10GiB")
	case n > MaxSize:
		return Errorf(Invalid, "the size %d is too large", n).WithHint("at most 64PiB")
	case n%512 != 0:
		return Errorf(Invalid, "the size %d is not a multiple of 512", n).WithHint("disks are made of 512-byte sectors")
	}
	return nil
}

// DefaultChunk is the chunk size of a disk unless another is asked for; docs/benchmarks.md says why.
const DefaultChunk = 16 << 10

// CheckChunk returns an error of kind [Invalid] unless n can be a chunk size.
func CheckChunk(n int64) error {
	if n < 4<<10 || n > 1<<20 || n&(n-1) != 0 {
		return Errorf(Invalid, "the chunk size %d is not possible", n).WithHint("use a power of two from 4KiB to 1MiB")
	}
	return nil
}
