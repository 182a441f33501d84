package agent

import (
	"context"
	"encoding/json"

	"tidemark/agent/proof"
)

// Prove brings a point up in a sandbox and checks it: see [proof.Run]. note is told how far it is.
func (a *Agent) Prove(ctx context.Context, spec proof.Spec, note func(proof.Note)) (proof.Report, error) {
	return do[proof.Report](ctx, a, "prove", spec, func(body json.RawMessage) {
		var n proof.Note
		if json.Unmarshal(body, &n) == nil {
			note(n)
		}
	})
}

func doProve(ctx context.Context, _ *session, spec proof.Spec, note func(any)) (proof.Report, error) {
	return proof.Run(ctx, spec, func(n proof.Note) { note(n) })
}
