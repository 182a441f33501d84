package tidemark

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// rateUnits are the decimal powers of the units of a rate.
var rateUnits = map[string]uint64{"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}

// Bounds of a rate, in bits per second.
const (
	minRate = 64e3
	maxRate = 1e12
)

// ParseRate reads a rate of a network, in bits per second: a whole number with a unit, bit, kbit, Mbit or Gbit (decimal, in any case).
// "none" is 0: no limit.
func ParseRate(s string) (int64, error) {
	t := strings.ToLower(strings.TrimSpace(s))
	if t == "none" {
		return 0, nil
	}
	i := 0
	for i < len(t) && t[i] >= '0' && t[i] <= '9' {
		i++
	}
	unit, ok := rateUnits[strings.TrimSpace(t[i:])]
	n, err := strconv.ParseUint(t[:i], 10, 64)
	if !ok || i == 0 {
		return 0, Errorf(Invalid, "%q is not a rate", s).WithHint("write a whole number with a unit, such as 20Mbit, or none")
	}
	high, rate := bits.Mul64(n, unit)
	if err != nil || high > 0 || rate > maxRate || rate < minRate {
		return 0, Errorf(Invalid, "the rate %s is out of bounds", s).WithHint("from 64kbit to 1000Gbit, or none")
	}
	return int64(rate), nil
}

// FormatRate prints a rate as ParseRate reads it, in the largest unit that keeps it exact.
func FormatRate(n int64) string {
	switch {
	case n == 0:
		return "none"
	case n%1e9 == 0:
		return fmt.Sprintf("%dGbit", n/1e9)
	case n%1e6 == 0:
		return fmt.Sprintf("%dMbit", n/1e6)
	case n%1e3 == 0:
		return fmt.Sprintf("%dkbit", n/1e3)
	}
	return fmt.Sprintf("%dbit", n)
}
