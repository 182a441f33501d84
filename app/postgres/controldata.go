package postgres

import (
	"context"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"tidemark"
)

// controlData is what pg_controldata says of a data directory, as far as a
// clone's start depends on it.
type controlData struct {
	state            string // such as "in production", "in archive recovery"
	timeline         uint32
	redoFile         string // the log file with the first record to replay
	maxConnections   int
	maxWorkers       int
	maxPrepared      int
	maxLocks         int
	commitTimestamps string
	checksums        bool // pages carry them
}

func readControl(ctx context.Context, bin, dataDir string) (controlData, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "pg_controldata"), "-D", dataDir)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	out, err := cmd.Output()
	if err != nil {
		return controlData{}, tidemark.Errorf(tidemark.Corrupt, "pg_control of %s cannot be read: %w", dataDir, err)
	}
	return parseControl(string(out))
}

// parseControl reads the lines of pg_controldata in the C locale.
func parseControl(text string) (controlData, error) {
	field := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			field[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	num := func(key string) int {
		n, err := strconv.Atoi(field[key])
		if err != nil {
			return 0
		}
		return n
	}
	c := controlData{
		state:            field["Database cluster state"],
		timeline:         uint32(num("Latest checkpoint's TimeLineID")),
		redoFile:         field["Latest checkpoint's REDO WAL file"],
		maxConnections:   num("max_connections setting"),
		maxWorkers:       num("max_worker_processes setting"),
		maxPrepared:      num("max_prepared_xacts setting"),
		maxLocks:         num("max_locks_per_xact setting"),
		commitTimestamps: field["track_commit_timestamp setting"],
		checksums:        num("Data page checksum version") > 0,
	}
	if c.state == "" || c.timeline == 0 {
		return c, tidemark.Errorf(tidemark.Corrupt, "pg_controldata prints nothing that can be read")
	}
	if c.commitTimestamps == "" {
		c.commitTimestamps = "off"
	}
	return c, nil
}
