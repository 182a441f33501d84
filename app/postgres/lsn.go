package postgres

import (
	"fmt"
	"strconv"
	"strings"

	"tidemark"
)

// LSN is a position in a cluster's log, in bytes from its beginning. It prints
// and parses as PostgreSQL does: two hexadecimal halves, "0/3000060". Zero is no
// position.
type LSN uint64

// ParseLSN reads an LSN such as "16/B374D848".
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	h, err1 := strconv.ParseUint(hi, 16, 32)
	l, err2 := strconv.ParseUint(lo, 16, 32)
	if !ok || err1 != nil || err2 != nil || len(hi) > 8 || len(lo) > 8 {
		return 0, tidemark.Errorf(tidemark.Invalid, "%q is not a log position", s).WithHint("write it as PostgreSQL prints it, such as 0/3000060")
	}
	return LSN(h<<32 | l), nil
}

// String is the form that PostgreSQL prints.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// MarshalText makes an LSN a string in JSON.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (l *LSN) UnmarshalText(b []byte) (err error) { *l, err = ParseLSN(string(b)); return err }

// segment names the log file that holds position l on a timeline.
func (l LSN) segment(tli uint32, segSize int64) string {
	return segmentName(tli, uint64(l)/uint64(segSize), segSize)
}

func segmentName(tli uint32, seg uint64, segSize int64) string {
	per := uint64(1<<32) / uint64(segSize)
	return fmt.Sprintf("%08X%08X%08X", tli, seg/per, seg%per)
}

// parseSegment reads the name of a log file, with ".partial" or without.
func parseSegment(name string, segSize int64) (tli uint32, seg uint64, ok bool) {
	name = strings.TrimSuffix(name, ".partial")
	if len(name) != 24 || segSize <= 0 || strings.Trim(name, "0123456789ABCDEF") != "" {
		return 0, 0, false
	}
	var part [3]uint64
	for i := range part {
		part[i], _ = strconv.ParseUint(name[8*i:8*i+8], 16, 32) // 8 hex digits always parse
	}
	per := uint64(1<<32) / uint64(segSize)
	if part[2] >= per {
		return 0, 0, false
	}
	return uint32(part[0]), part[1]*per + part[2], true
}
