package agent

import (
	"context"
	"time"

	"tidemark"
	"tidemark/app/script"
)

// Program is a program of the administrator, in a directory that only root can write to.
type Program struct {
	Dir  string `json:"dir"`
	Name string `json:"name"`
	// Limit is how long it may take; then it is killed, with all that it started.
	Limit time.Duration `json:"limit,omitempty"`
	Env   []string      `json:"env,omitempty"` // added to its environment
}

// FindProgram refuses a program that could not be run: see [script.Find].
func (a *Agent) FindProgram(ctx context.Context, p Program) error {
	_, err := do[none](ctx, a, "find-program", p, nil)
	return err
}

func doFindProgram(_ context.Context, _ *session, p Program, _ func(any)) (none, error) {
	_, err := script.Find(p.Dir, p.Name)
	return none{}, err
}

// RunProgram runs a program as root, and returns the last line that it said. It ends with the agent, and when ctx is done.
func (a *Agent) RunProgram(ctx context.Context, p Program) (last string, err error) {
	return do[string](ctx, a, "run-program", p, nil)
}

func doRunProgram(ctx context.Context, _ *session, p Program, _ func(any)) (string, error) {
	last, err := script.Program(ctx, p.Dir, p.Name, p.Limit, p.Env...)
	if err != nil && tidemark.KindOf(err) == tidemark.Internal {
		err = tidemark.Errorf(tidemark.Unavailable, "%w", err) // that a program fails is no fault of ours
	}
	return last, err
}
