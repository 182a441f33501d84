package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"time"

	"tidemark"
	"tidemark/app/script"
	"tidemark/capture"
)

// Quiescing asks that an application be made still whose point the server marks by itself: a virtual machine, whose writes come to
// the server without a tap.
type Quiescing struct {
	Timeline string `json:"timeline"` // its id
	Bookmark string `json:"bookmark"`
	Scripts  string `json:"scripts,omitempty"` // as of [ShotMember]
	// ScriptLimit is how long each of them may take; 0: ScriptLimit.
	ScriptLimit time.Duration `json:"script_limit,omitempty"`
	Guest       string        `json:"guest,omitempty"`   // socket of the guest agent that freezes the machine's file systems
	Barrier     string        `json:"barrier,omitempty"` // is set by Quiesce
}

// Quiesced is how an application was made still.
type Quiesced struct {
	MemberResult
	Hold time.Duration `json:"hold"` // of its file systems
	// Lasted: it was still when its point had been marked.
	Lasted bool `json:"lasted"`
}

// Quiesce makes an application still, calls mark with the mark that says how still it is, and lets it go on. Whatever fails or hangs, what
// was stopped goes on. If mark fails, so does Quiesce.
func (a *Agent) Quiesce(ctx context.Context, q Quiescing, mark func(capture.Mark) error) (r Quiesced, err error) {
	q.Barrier = rand.Text()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	still, ended := make(chan json.RawMessage, 1), make(chan none)
	go func() {
		defer close(ended)
		r, err = do[Quiesced](ctx, a, "quiesce", q, func(note json.RawMessage) { still <- note })
	}()
	var marked error
	select {
	case note := <-still:
		var m capture.Mark
		if marked = json.Unmarshal(note, &m); marked == nil {
			marked = mark(m)
		}
		if marked == nil {
			_, marked = do[none](ctx, a, "proceed", q.Barrier, nil)
		}
		if marked != nil {
			cancel()
		}
		<-ended
	case <-ended:
	}
	if marked != nil {
		return r, marked
	}
	return r, err
}

func doQuiesce(ctx context.Context, s *session, q Quiescing, note func(any)) (r Quiesced, err error) {
	if err := tidemark.CheckName(q.Timeline); err != nil {
		return r, err
	}
	leave, err := s.enterShot(ctx, q.Timeline)
	if err != nil {
		return r, err
	}
	defer leave()
	b := s.openBarrier(q.Barrier, func(any) {})
	defer s.closeBarrier(q.Barrier)
	m := newQuieting(s, ShotMember{Tapping: Tapping{Timeline: q.Timeline}, Mark: capture.Mark{Name: q.Bookmark}, Scripts: q.Scripts, ScriptLimit: q.ScriptLimit}, nil)
	m.guest = q.Guest
	x := &shooting{s: s, members: []*quieting{m}}
	err = x.quiet(ctx)
	if err == nil {
		m.complete()
		note(m.Mark)
		bounded, cancel := context.WithTimeout(ctx, s.limits.mark)
		err = b.pass(bounded)
		cancel()
	}
	r.Lasted = m.lasts()
	x.letGo(ctx)
	res, err := x.result(err)
	r.MemberResult, r.Hold = res.Members[0], res.Hold
	return r, err
}

// CheckScripts refuses a directory of programs that could not be run: see [script.Load].
func (a *Agent) CheckScripts(ctx context.Context, dir string) error {
	_, err := do[none](ctx, a, "check-scripts", dir, nil)
	return err
}

func doCheckScripts(_ context.Context, _ *session, dir string, _ func(any)) (none, error) {
	_, err := script.Load(dir)
	return none{}, err
}
