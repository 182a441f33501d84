package postgres

import (
	"context"
	"encoding/json"
	"path/filepath"
	"time"

	"tidemark/internal/vfs"
)

// How far the log is received is known by asking the server, which may be gone when it matters most. So it is noted beside the log.

const (
	// receivedName is the note's name in a Receiver's directory.
	receivedName = "received.json"
	// noteEvery is how old a note may become while log comes; noteTick is how often it is looked whether one is due. Each costs some blocks of a disk that is captured.
	noteEvery = 10 * time.Minute
	noteTick  = 200 * time.Millisecond
)

// received is how far the log was received.
type received struct {
	Covered time.Time `json:"covered"`
	Flushed LSN       `json:"flushed"`
}

// recall begins with what was noted last.
func (r *Receiver) recall() {
	var n received
	data, err := vfs.ReadFile(vfs.OS, filepath.Join(r.cfg.WALDir, receivedName))
	if err != nil || json.Unmarshal(data, &n) != nil {
		return // then the server is asked
	}
	r.note(func(s *ReceiverStatus) {
		if s.Flushed == 0 {
			s.Covered, s.Flushed = n.Covered, n.Flushed
		}
	})
}

// remember notes how far the log is received: at once when it does not go on, and else now and then. It waits for the disk, and nobody for it.
func (r *Receiver) remember(ctx context.Context) {
	tick := time.NewTicker(noteTick)
	defer tick.Stop()
	var last received
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.mu.Lock()
		now, goesOn := received{r.status.Covered, r.status.Flushed}, r.status.Running
		r.mu.Unlock()
		if now.Covered.IsZero() || now.Covered.Equal(last.Covered) || goesOn && now.Covered.Sub(last.Covered).Abs() < noteEvery {
			continue
		}
		data, err := json.Marshal(now)
		if err == nil {
			err = vfs.WriteFile(vfs.OS, filepath.Join(r.cfg.WALDir, receivedName), append(data, '\n'))
		}
		if err == nil { // else it is tried again
			last = now
		}
	}
}
