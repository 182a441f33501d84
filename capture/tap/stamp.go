package tap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Stamp tells whether somebody else has written to a disk while it was not tapped.
type Stamp struct {
	// Written is how many sectors of a block device were written or discarded since the host was booted; -1 for files.
	Written int64 `json:"written"`
	// Modified is when a file was last modified, in Unix nanoseconds.
	Modified int64 `json:"modified,omitempty"`
}

// stamper is a Primary that has a Stamp. Of others it is believed that nobody else writes to them.
type stamper interface{ Stamp() (Stamp, error) }

func stampOf(p Primary) (Stamp, error) {
	if s, ok := p.(stamper); ok {
		return s.Stamp()
	}
	return Stamp{}, nil
}

// changedMeanwhile returns the first disk that was written since the tap with the notes n ended, or -1. What was
// written in a boot of the host in which no tap ran leaves no trace if the next tap is the first to
// write in a later one: see DESIGN.md.
func changedMeanwhile(disks []Primary, n *notes, boot string) (int, error) {
	for i, p := range disks {
		now, err := stampOf(p)
		if err != nil {
			return -1, err
		}
		switch {
		case n.Clean && i < len(n.Stamps) && n.Boot == boot:
			if now != n.Stamps[i] {
				return i, nil
			}
		case n.Boot != boot && n.Boot != "":
			if changed, err := now.writtenSinceBoot(); changed || err != nil {
				return i, err
			}
			if n.Clean && i < len(n.Stamps) && now.Modified != n.Stamps[i].Modified {
				return i, nil
			}
		}
	}
	return -1, nil
}

// writtenSinceBoot reports whether somebody has written to the disk since the host was booted.
func (s Stamp) writtenSinceBoot() (bool, error) {
	if s.Written >= 0 {
		return s.Written > 0, nil
	}
	booted, err := bootTime()
	return s.Modified >= booted.UnixNano(), err
}

// bootTime returns when the host was booted.
func bootTime() (time.Time, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "btime "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return time.Unix(n, 0), err
		}
	}
	return time.Time{}, errors.New("/proc/stat does not say when the host was booted")
}

// Stamp implements stamper.
func (h *host) Stamp() (Stamp, error) {
	st, err := h.f.Stat()
	if err != nil {
		return Stamp{}, err
	}
	if st.Mode()&fs.ModeDevice == 0 {
		return Stamp{Written: -1, Modified: st.ModTime().UnixNano()}, nil
	}
	var raw unix.Stat_t
	if err := unix.Fstat(int(h.f.Fd()), &raw); err != nil {
		return Stamp{}, err
	}
	path := fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(raw.Rdev), unix.Minor(raw.Rdev))
	data, err := os.ReadFile(path)
	if err != nil {
		return Stamp{}, fmt.Errorf("whether somebody wrote to %s: %w", h.f.Name(), err)
	}
	var s Stamp
	f := strings.Fields(string(data))
	for _, i := range []int{6, 13} { // sectors written and discarded: Documentation/block/stat.rst
		if len(f) <= i {
			return s, fmt.Errorf("%s has %d fields", path, len(f))
		}
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return s, fmt.Errorf("%s: %w", path, err)
		}
		s.Written += n
	}
	return s, nil
}
