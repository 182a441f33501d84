package agent

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"tidemark"
	"tidemark/app/postgres"
)

// Log says which log is received where: see [postgres.ReceiverConfig].
type Log struct {
	Source     postgres.Source `json:"source"`
	ID         string          `json:"id"` // also names the log in the other calls
	Dir        string          `json:"dir"`
	LimitBytes int64           `json:"limit_bytes,omitempty"`
}

// receivers are the logs that are being received, by ID.
type receivers struct {
	mu   sync.Mutex
	live map[string]*postgres.Receiver
}

// ReceiveLog streams a log until ctx is done, and then returns nil or the context's error. onGap
// is told of each new gap. It fails, beside bad arguments, when the agent dies; call it again.
func (a *Agent) ReceiveLog(ctx context.Context, log Log, onGap func(postgres.Gap)) error {
	_, err := do[none](ctx, a, "receive", log, func(note json.RawMessage) {
		var g postgres.Gap
		if json.Unmarshal(note, &g) == nil {
			onGap(g)
		}
	})
	return err
}

func doReceive(ctx context.Context, s *session, log Log, note func(any)) (none, error) {
	r, err := postgres.NewReceiver(postgres.ReceiverConfig{Source: log.Source, ID: log.ID, WALDir: log.Dir, LimitBytes: log.LimitBytes,
		OnGap: func(g postgres.Gap) { note(g) }})
	if err != nil {
		return none{}, err
	}
	if !s.receivers.add(log.ID, r) {
		return none{}, tidemark.Errorf(tidemark.Conflict, "the log %s is received already", log.ID)
	}
	defer s.receivers.remove(log.ID)
	return none{}, r.Run(ctx)
}

func (r *receivers) add(id string, x *postgres.Receiver) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live[id] != nil {
		return false
	}
	r.live[id] = x
	return true
}

func (r *receivers) remove(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, id)
}

// beginning is how long a log may take to be there after its receiving was asked
// for: calls are worked off side by side, and need not begin in their order.
const beginning = 2 * time.Second

func (r *receivers) get(ctx context.Context, id string) (*postgres.Receiver, error) {
	for until := time.Now().Add(beginning); ; {
		r.mu.Lock()
		x := r.live[id]
		r.mu.Unlock()
		if x != nil {
			return x, nil
		}
		if ctx.Err() != nil || time.Now().After(until) {
			return nil, tidemark.Errorf(tidemark.Unavailable, "the log %s is not being received", id).WithHint("try again in a moment")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// LogStatus returns how a log that is being received stands: see [postgres.Receiver.Status].
func (a *Agent) LogStatus(ctx context.Context, id string) (postgres.ReceiverStatus, error) {
	return soon[postgres.ReceiverStatus](ctx, a, "received", id)
}

func doReceived(ctx context.Context, s *session, id string, _ func(any)) (postgres.ReceiverStatus, error) {
	r, err := s.receivers.get(ctx, id)
	if err != nil {
		return postgres.ReceiverStatus{}, err
	}
	return r.Status()
}

type forceArgs struct {
	ID  string
	LSN postgres.LSN
}

// ForceLog returns when a log that is being received has reached lsn, or for 0 the
// end of the server's log now: see [postgres.Receiver.ForceReceive].
func (a *Agent) ForceLog(ctx context.Context, id string, lsn postgres.LSN) (postgres.LSN, error) {
	return do[postgres.LSN](ctx, a, "force", forceArgs{id, lsn}, nil)
}

func doForce(ctx context.Context, s *session, args forceArgs, _ func(any)) (postgres.LSN, error) {
	r, err := s.receivers.get(ctx, args.ID)
	if err != nil {
		return 0, err
	}
	return r.ForceReceive(ctx, args.LSN)
}

type pruneArgs struct {
	Dir    string
	Oldest postgres.LSN
}

// PruneLog deletes received log that lies before oldest: see [postgres.Prune].
func (a *Agent) PruneLog(ctx context.Context, dir string, oldest postgres.LSN) error {
	_, err := do[none](ctx, a, "prune", pruneArgs{dir, oldest}, nil)
	return err
}

func doPrune(_ context.Context, _ *session, args pruneArgs, _ func(any)) (none, error) {
	_, _, err := postgres.Prune(args.Dir, args.Oldest)
	return none{}, err
}
