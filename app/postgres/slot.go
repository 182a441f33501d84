package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"tidemark"
	"tidemark/internal/vfs"
)

// Gap is an interval of the log that was lost for ever. Points after it become
// recoverable with the next capture.
type Gap struct {
	From     LSN       `json:"from"` // the end of what was received
	To       LSN       `json:"to"`   // where receiving began anew
	FromTime time.Time `json:"fromTime"`
	ToTime   time.Time `json:"toTime"`
	Reason   string    `json:"reason"`
}

func gapsPath(walDir string) string { return filepath.Join(walDir, "gaps.json") }

// ReadGaps returns the gaps recorded in a Receiver's directory, oldest first.
func ReadGaps(walDir string) ([]Gap, error) {
	data, err := vfs.ReadFile(vfs.OS, gapsPath(walDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var gaps []Gap
	if err := json.Unmarshal(data, &gaps); err != nil {
		return nil, tidemark.Errorf(tidemark.Corrupt, "%s cannot be read: %w", gapsPath(walDir), err)
	}
	return gaps, nil
}

func writeGaps(walDir string, gaps []Gap) error {
	data, err := json.MarshalIndent(gaps, "", "  ")
	if err != nil {
		return err
	}
	return vfs.WriteFile(vfs.OS, gapsPath(walDir), append(data, '\n'))
}

// ensureSlot makes sure that the slot exists and leads on from what was received;
// where it cannot, the gap is recorded and receiving begins anew.
func (r *Receiver) ensureSlot(ctx context.Context, conn *pgx.Conn, facts *Report) error {
	if err := vfs.MkdirAll(vfs.OS, r.cfg.WALDir); err != nil {
		return fmt.Errorf("prepare %s: %w", r.cfg.WALDir, err)
	}
	var usable bool
	err := conn.QueryRow(ctx, "SELECT restart_lsn IS NOT NULL AND coalesce("+walStatusColumn(conn)+", '') <> 'lost' FROM pg_replication_slots WHERE slot_name = $1", r.slot).Scan(&usable)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("look for slot %s: %w", r.slot, err)
	}
	if err == nil && !usable {
		if err := dropSlot(ctx, conn, r.slot); err != nil {
			return err
		}
	}
	if !usable {
		if _, err := conn.Exec(ctx, "SELECT pg_create_physical_replication_slot($1, true)", r.slot); err != nil {
			return fmt.Errorf("make slot %s: %w", r.slot, err)
		}
	}
	last, next, err := r.received(facts.SegSize)
	if err != nil || last == "" {
		return err
	}
	has, err := r.serverHas(ctx, conn, next, facts.SegSize)
	if err != nil || has {
		return err
	}
	return r.beginAnew(ctx, conn, facts, "the server removed log that was not received")
}

// serverHas reports whether the server has a log file yet. A role that may not ask for that (pg_monitor may, too) is told only of what the slot keeps: a file
// before that counts as removed, which is a gap where there need be none, and never the reverse.
func (r *Receiver) serverHas(ctx context.Context, conn *pgx.Conn, name string, segSize int64) (has bool, err error) {
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_ls_waldir() WHERE name = $1)", name).Scan(&has)
	var pe *pgconn.PgError
	if err == nil || !errors.As(err, &pe) || pe.Code != insufficientPrivilege {
		return has, err
	}
	kept, _, err := r.slotBegins(ctx, conn)
	_, seg, ok := parseSegment(name, segSize)
	return ok && seg >= uint64(kept)/uint64(segSize), err
}

// insufficientPrivilege is the SQLSTATE of what a role may not do.
const insufficientPrivilege = "42501"

// slotBegins is the position from which the server keeps log for the slot, and the time by its clock.
func (r *Receiver) slotBegins(ctx context.Context, conn *pgx.Conn) (from LSN, now time.Time, err error) {
	var pos string
	if err = conn.QueryRow(ctx, "SELECT restart_lsn::text, clock_timestamp() FROM pg_replication_slots WHERE slot_name = $1", r.slot).Scan(&pos, &now); err == nil {
		if from, err = ParseLSN(pos); err == nil {
			err = checkClock(now)
		}
	}
	if err != nil {
		err = fmt.Errorf("ask the position of slot %s: %w", r.slot, err)
	}
	return from, now, err
}

// received returns the newest log file of the directory and the one that
// pg_receivewal will ask for.
func (r *Receiver) received(segSize int64) (last, next string, err error) {
	list, err := os.ReadDir(r.cfg.WALDir)
	if err != nil {
		return "", "", err
	}
	var best uint64
	for _, e := range list {
		tli, seg, ok := parseSegment(e.Name(), segSize)
		if !ok || last != "" && seg < best {
			continue
		}
		best, last, next = seg, e.Name(), segmentName(tli, seg+1, segSize)
		if strings.HasSuffix(last, ".partial") {
			next = strings.TrimSuffix(last, ".partial")
		}
	}
	return last, next, nil
}

// giveUp drops a slot that passed its limit, so that production is safe first,
// and begins anew.
func (r *Receiver) giveUp(ctx context.Context, conn *pgx.Conn, facts *Report, why *overLimit) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := dropSlot(ctx, conn, r.slot); err != nil {
		return errors.Join(why, err)
	}
	if _, err := conn.Exec(ctx, "SELECT pg_create_physical_replication_slot($1, true)", r.slot); err != nil {
		return errors.Join(why, err)
	}
	return errors.Join(why, r.beginAnew(ctx, conn, facts, why.Error()))
}

// beginAnew records a gap up to the slot's position and sets aside what was
// received, so that pg_receivewal starts from the slot. A crash in between does the
// same again.
func (r *Receiver) beginAnew(ctx context.Context, conn *pgx.Conn, facts *Report, reason string) error {
	to, now, err := r.slotBegins(ctx, conn)
	if err != nil {
		return err
	}
	last, _, err := r.received(facts.SegSize)
	if err != nil {
		return err
	}
	gap := Gap{To: to, ToTime: now, Reason: reason}
	r.mu.Lock()
	gap.From, gap.FromTime = r.status.Flushed, r.status.Covered
	r.sample, r.status.Flushed = sample{}, to
	r.mu.Unlock()
	if last != "" {
		if _, seg, ok := parseSegment(last, facts.SegSize); ok && gap.From < LSN(seg*uint64(facts.SegSize)) {
			gap.From = LSN(seg * uint64(facts.SegSize))
		}
		if st, err := os.Stat(filepath.Join(r.cfg.WALDir, last)); err == nil && gap.FromTime.IsZero() {
			gap.FromTime = st.ModTime()
		}
	}
	if err := r.record(gap); err != nil {
		return fmt.Errorf("record a gap in the log: %w", err)
	}
	if err := r.setAside(to); err != nil {
		return fmt.Errorf("set aside the log before a gap: %w", err)
	}
	if r.cfg.OnGap != nil {
		r.cfg.OnGap(gap)
	}
	return nil
}

// record adds a gap; one that begins where the last one does replaces it.
func (r *Receiver) record(gap Gap) error {
	gaps, err := ReadGaps(r.cfg.WALDir)
	if err != nil {
		return err
	}
	if n := len(gaps); n > 0 && gaps[n-1].From == gap.From {
		gaps = gaps[:n-1]
	}
	return writeGaps(r.cfg.WALDir, append(gaps, gap))
}

// setAside moves all that looks like log into a directory named for the gap's end.
func (r *Receiver) setAside(to LSN) error {
	dir := filepath.Join(r.cfg.WALDir, fmt.Sprintf("before-%016X", uint64(to)))
	list, err := os.ReadDir(r.cfg.WALDir)
	if err != nil {
		return err
	}
	made := false
	for _, e := range list {
		name := e.Name()
		if e.IsDir() && strings.HasPrefix(name, "before-") || strings.HasPrefix(name, "gaps.json") || strings.HasPrefix(name, receivedName) || strings.HasSuffix(name, ".history") {
			continue
		}
		if !made {
			if err := vfs.MkdirAll(vfs.OS, dir); err != nil {
				return err
			}
			if err := os.Chmod(dir, 0o755); err != nil {
				return err
			}
			made = true
		}
		if err := vfs.Rename(vfs.OS, filepath.Join(r.cfg.WALDir, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// dropSlot ends the slot's user and removes it; a slot that does not exist is no error.
func dropSlot(ctx context.Context, conn *pgx.Conn, slot string) error {
	var err error
	for range 50 {
		if _, err = conn.Exec(ctx, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", slot); err != nil {
			break
		}
		if _, err = conn.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", slot); err == nil {
			return nil
		}
		select { // its backend takes a moment to end
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("drop slot %s: %w", slot, err)
}

// DropSlot removes a Receiver's slot from the server, when protection ends. Without it
// the server keeps log for ever, up to its own limit.
func DropSlot(ctx context.Context, src Source, id string) error {
	conn, err := src.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return dropSlot(ctx, conn, "tidemark_"+id)
}

// Prune removes the log files of a Receiver's directory that lie wholly before
// oldest, of all timelines and also those set aside, and the gaps before it.
// It returns how many files and bytes were removed. History files stay.
func Prune(walDir string, oldest LSN) (files int, freed int64, err error) {
	dirs, err := filepath.Glob(filepath.Join(escapeGlob(walDir), gapDirs))
	if err != nil {
		return 0, 0, err
	}
	for _, dir := range append(dirs, walDir) {
		n, b, err := pruneDir(dir, oldest)
		files, freed = files+n, freed+b
		if err != nil {
			return files, freed, fmt.Errorf("prune the log: %w", err)
		}
		if dir != walDir {
			os.Remove(dir) // fails while it holds log that is needed
		}
	}
	gaps, err := ReadGaps(walDir)
	if err != nil || len(gaps) == 0 || gaps[0].To > oldest {
		return files, freed, err
	}
	var keep []Gap
	for _, g := range gaps {
		if g.To > oldest {
			keep = append(keep, g)
		}
	}
	return files, freed, writeGaps(walDir, keep)
}

func pruneDir(dir string, oldest LSN) (files int, freed int64, err error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, err
	}
	for _, e := range list {
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return files, freed, err
		}
		_, seg, ok := parseSegment(e.Name(), fi.Size())
		if !ok || (seg+1)*uint64(fi.Size()) > uint64(oldest) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return files, freed, err
		}
		files, freed = files+1, freed+fi.Size()
	}
	return files, freed, nil
}
