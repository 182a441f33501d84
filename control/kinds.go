package control

import (
	"context"
	"encoding/json"
	"time"

	"tidemark"
	"tidemark/catalog"
)

// kind is a sort of job. What is recorded of a job is its kind and its request: any process that has the data directory makes work of them.
type kind struct {
	// plan finds out whether a request can be met, and how. It changes nothing.
	plan func(*Control, context.Context, json.RawMessage) (*work, error)
	// again: a job that was cut, and undone, is begun again. To do it twice does no harm.
	again bool
	// part: if a run of a workflow asked for it, it is begun again, and more often. Whoever asks by hand for one that is not begun again otherwise
	// is told that it was cut instead.
	part bool
	// resumes: a job that was cut goes on where it was, however often. That it fails is its end.
	resumes  bool
	attempts int           // how often a job is begun, after cuts and, if nobody waits for it, after failures that may pass
	pause    time.Duration // before the second attempt; see backOff
}

// kinds are all sorts of jobs.
func kinds() map[string]kind {
	return map[string]kind{
		"capture": {plan: decoded((*Control).captureWork), again: true, attempts: 5, pause: 30 * time.Second},
		"refresh": {plan: decoded((*Control).refreshWork), again: true, attempts: 3, pause: 30 * time.Second},
		"verify":  {plan: decoded((*Control).verifyWork), again: true, attempts: 3, pause: time.Minute},
		"reclaim": {plan: decoded((*Control).reclaimWork), again: true, attempts: 3, pause: time.Minute},
		"prove":   {plan: decoded((*Control).proveWork), part: true, attempts: 1},
		"prepare": {plan: decoded((*Control).prepareWork), again: true, attempts: 3, pause: 30 * time.Second}, // it begins from what there was before
		"publish": {plan: decoded((*Control).publishWork), part: true, attempts: 1},
		// Of these nothing is left once they are undone, so that to begin again is to do them for the first time.
		"clone":   {plan: decoded((*Control).cloneWork), again: true, part: true, attempts: 3, pause: 30 * time.Second},
		"protect": {plan: decoded((*Control).protectWork), again: true, attempts: 3, pause: 30 * time.Second},
		"import":  {plan: decoded((*Control).importWork), again: true, attempts: 3, pause: 30 * time.Second},
		// What writes over something that somebody has is done once for each time that it is asked for.
		"rewind":      {plan: decoded((*Control).rewindWork), attempts: 1},
		"restore":     {plan: decoded((*Control).restoreWork), attempts: 1},
		"pool import": {plan: decoded((*Control).poolImportWork), attempts: 1},

		catalog.KindWorkflow: {plan: decoded((*Control).workflowWork), resumes: true, attempts: 1000},
	}
}

// beginsAgain reports whether a job that was cut, and undone, is begun again.
func (k kind) beginsAgain(j *catalog.Job) bool {
	switch {
	case k.resumes:
		return true
	case k.part && j.Parent != 0:
		return j.Attempt < max(j.MaxAttempts, partAttempts)
	}
	return k.again && j.Attempt < max(j.MaxAttempts, k.attempts)
}

// partAttempts is how often a part of a run is begun at least, after cuts: each is one stop of the server.
const partAttempts = 10

// work is what a job does.
type work struct {
	app  string // of which it is the only job; empty: of none
	host string // that it works on; empty: on none
	of   string // the application that it is done for, and whose profile bounds it; empty: app
	// means is what it takes the data of, or writes over, if that is neither of these.
	means meant
	// args is the request as it is recorded: it means the same whenever it is read.
	args any
	// holding reserves what is needed, until release. It fails if somebody else has that now.
	holding func(context.Context) (release func(), err error)
	run     func(context.Context, *task) (any, error)
}

// hold reserves what the work needs until release.
func (w *work) hold(ctx context.Context) (release func(), err error) {
	if w.holding == nil {
		return func() {}, nil
	}
	return w.holding(ctx)
}

// begin does the work, unless what it is done to is being removed.
func (w *work) begin(ctx context.Context, t *task) (any, error) {
	if err := t.c.stays(w.app); err != nil {
		t.waits = true // then it is gone, and is looked for once more
		return nil, err
	}
	return w.run(ctx, t)
}

// host is where the work on an application is done.
func (a app) host() string {
	if a.Agent != "" {
		return a.Agent
	}
	return hostname()
}

// fixed makes of a reference that is counted from now one that stays. Others are as they were.
func fixed(ref string) string {
	r, err := tidemark.ParseRef(ref)
	if err != nil || r.Point.Ago == 0 {
		return ref
	}
	when, _ := r.Point.When(time.Now())
	r.Point = tidemark.Point{Time: when}
	return r.String()
}
