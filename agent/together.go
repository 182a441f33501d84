package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"time"

	"tidemark"
)

// A shot of several hosts is one moment because there is a time at which all of them hold their writes, and every mark is made in it: no
// host marks before all hold, and none lets go before all have marked. A hold that ended by itself meanwhile fails the shot.

// Part is what a shot of several hosts asks of one of them.
type Part struct {
	Agent *Agent
	Shot  Shot
}

// barriers is how often the parts of a shot wait for each other: when all is prepared that may take long, when the applications are still, when
// file systems are frozen, when taps hold, and when the marks are made.
const barriers = 5

// shotLimit is how long a shot may take, most of it for programs: others wait for its members meanwhile.
func shotLimit(parts ...Part) time.Duration {
	scripts := ScriptLimit
	for _, p := range parts {
		for _, m := range p.Shot.Members {
			scripts = max(scripts, m.ScriptLimit)
		}
	}
	l := shotLimits
	return l.write + l.again + 6*l.mark + l.frozen + 2*scripts
}

// ShootTogether makes one shot of several hosts, and returns the results in the order of the parts. Its marks
// are one moment of all of them, or it fails.
func ShootTogether(ctx context.Context, parts []Part) ([]ShotResult, error) {
	results, errs := make([]ShotResult, len(parts)), make([]error, len(parts))
	if len(parts) == 1 {
		results[0], errs[0] = parts[0].Agent.Shoot(ctx, parts[0].Shot)
		return results, errs[0]
	}
	ctx, cancel := context.WithTimeout(ctx, shotLimit(parts...))
	defer cancel()
	name, arrived, ended := rand.Text(), make(chan none, len(parts)), make(chan none, len(parts))
	for i, p := range parts {
		p.Shot.Barrier = name
		go func() {
			results[i], errs[i] = do[ShotResult](ctx, p.Agent, "shoot", p.Shot, func(json.RawMessage) {
				select {
				case arrived <- none{}:
				default: // there are no more barriers than this has room for; nobody who says so keeps its agent from being listened to
				}
			})
			if errs[i] != nil {
				cancel() // the others need not wait
			}
			ended <- none{}
		}()
	}
	for range barriers {
		if !gather(ctx, arrived, len(parts)) || !proceed(ctx, parts, name) {
			cancel()
			break
		}
	}
	gather(context.Background(), ended, len(parts))
	return results, firstCause(errs)
}

// gather waits for n signals, or for the end of ctx, of which it returns false.
func gather(ctx context.Context, from <-chan none, n int) bool {
	for range n {
		select {
		case <-from:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// proceed lets all parts go on.
func proceed(ctx context.Context, parts []Part, name string) bool {
	told := make(chan error, len(parts))
	for _, p := range parts {
		go func() {
			_, err := do[none](ctx, p.Agent, "proceed", name, nil)
			told <- err
		}()
	}
	ok := true
	for range parts {
		ok = <-told == nil && ok
	}
	return ok
}

// firstCause joins errors, but for those of parts that were cut because another failed.
func firstCause(errs []error) error {
	var causes []error
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			causes = append(causes, err)
		}
	}
	if causes == nil {
		causes = errs
	}
	return errors.Join(causes...)
}

// barrier is where a part of a shot waits for the others. nil does not wait.
type barrier struct {
	note func(any)
	open chan none
}

// openBarrier lets the server find a shot by the name of its barrier.
func (s *session) openBarrier(name string, note func(any)) *barrier {
	b := &barrier{note: note, open: make(chan none, barriers)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.barriers[name] = b
	return b
}

func (s *session) closeBarrier(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.barriers, name)
}

// pass says that this part is there, and waits until all are.
func (b *barrier) pass(ctx context.Context) error {
	if b == nil {
		return nil
	}
	b.note(none{})
	select {
	case <-b.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func doProceed(_ context.Context, s *session, name string, _ func(any)) (none, error) {
	s.mu.Lock()
	b := s.barriers[name]
	s.mu.Unlock()
	if b == nil {
		return none{}, tidemark.Errorf(tidemark.NotFound, "that shot has ended")
	}
	select {
	case b.open <- none{}:
	default: // nobody waits so often
	}
	return none{}, nil
}
