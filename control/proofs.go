package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark"
	"tidemark/catalog"
)

// keptProof is a recovery proof as the catalog has it.
type keptProof struct {
	tidemark.Proof
	Timeline string `json:"timeline"` // its id: another application may have the name later
	Kept     bool   `json:"kept"`     // of a point that is kept
}

// proofKey is the name of a proof in the catalog.
func proofKey(application, point string) string { return application + "@" + point }

func (k keptProof) key() string {
	if k.Kept {
		return proofKey(k.Application, k.Position.String())
	}
	return k.Ref
}

// mostMoments is how many proofs of moments are kept of an application, beside those of points that are kept.
const mostMoments = 32

// stamp records what a proof found, and tells it. Its error is that the point is not proven.
func (c *Control) stamp(ctx context.Context, x *proving) error {
	p := x.proof
	k := keptProof{Proof: p, Timeline: x.plan.src.t.ID(), Kept: x.kept}
	if err := c.catalog.Put(ctx, catalog.Proofs, k.key(), k); err != nil {
		return err
	}
	if err := errors.Join(c.noteUnproven(ctx, k), c.pruneMoments(ctx, x.plan.src)); err != nil {
		return err
	}
	c.changedProof(x.plan.src, p)
	if p.Result == tidemark.Proven {
		c.event("info", p.Application, "%s is proven: it answered %.1f s after it was asked for", p.Ref, p.RecoverySeconds)
		return nil
	}
	c.event("error", p.Application, "%s is NOT proven to be recoverable: %s", p.Ref, p.Reason)
	err := tidemark.Errorf(tidemark.Corrupt, "%s is not proven to be recoverable: %s", p.Ref, p.Reason)
	if p.Output != "" {
		err = err.WithHint("what was said is in " + p.Output)
	}
	return err
}

// noteUnproven keeps the newest point of an application that could not be proven, until it is, or a newer one is.
func (c *Control) noteUnproven(ctx context.Context, k keptProof) error {
	var before keptProof
	err := c.catalog.Get(ctx, catalog.Unproven, k.Application, &before)
	if err != nil && tidemark.KindOf(err) != tidemark.NotFound {
		return err
	}
	if err == nil && before.Timeline == k.Timeline && before.Time.After(k.Time) {
		return nil // it says nothing of a newer point
	}
	if k.Result == tidemark.Proven {
		return c.catalog.Delete(ctx, catalog.Unproven, k.Application)
	}
	return c.catalog.Put(ctx, catalog.Unproven, k.Application, k)
}

// pruneMoments forgets the oldest proofs of moments of an application.
func (c *Control) pruneMoments(ctx context.Context, a app) error {
	list, err := c.proofsOf(ctx, a)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(k keptProof) bool { return k.Kept })
	for _, k := range list[min(len(list), mostMoments):] {
		if err := c.catalog.Delete(ctx, catalog.Proofs, k.key()); err != nil {
			return err
		}
	}
	return nil
}

// proofsOf returns the proofs of an application, those made last first.
func (c *Control) proofsOf(ctx context.Context, a app) ([]keptProof, error) {
	list, err := catalog.List[keptProof](ctx, c.catalog, catalog.Proofs)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(k keptProof) bool { return k.Application != a.name || k.Timeline != a.t.ID() })
	slices.SortFunc(list, func(a, b keptProof) int { return cmp.Compare(b.At.UnixNano(), a.At.UnixNano()) })
	return list, nil
}

// addProofs adds to points what their proofs say. A point of which none is known has none.
func (c *Control) addProofs(ctx context.Context, a app, p *tidemark.Points) {
	list, err := c.proofsOf(ctx, a)
	if err != nil {
		c.log.Error("the recovery proofs cannot be read", "application", a.name, "error", err)
	}
	for _, k := range list {
		i := slices.IndexFunc(p.Points, func(r tidemark.RecoveryPoint) bool { return k.Kept && r.Position == k.Position })
		if i >= 0 {
			p.Points[i].Proven = &k.Stamp
		} else if !k.Kept {
			p.Moments = append(p.Moments, k.Proof)
		}
	}
}

// proofStatus warns of the applications whose newest proof failed.
func (c *Control) proofStatus(ctx context.Context, s *tidemark.Status) {
	list, err := catalog.List[keptProof](ctx, c.catalog, catalog.Unproven)
	if err != nil {
		c.log.Error("the recovery proofs that failed cannot be read", "error", err)
	}
	for _, k := range list {
		if a, err := c.app(k.Application); err != nil || a.t.ID() != k.Timeline {
			continue // it was unprotected while its proof went on
		}
		s.Warnings = append(s.Warnings, fmt.Sprintf("%s could not be recovered when that was tried at %s: %s; this stays until `tidemark prove` proves it, or a newer point",
			k.Ref, k.At.Local().Format(time.RFC3339), k.Reason))
	}
}

// forgetProofs forgets all proofs of an application that is gone.
func (c *Control) forgetProofs(ctx context.Context, a app) error {
	list, err := c.proofsOf(ctx, a)
	if err != nil {
		return err
	}
	errs := []error{c.catalog.Delete(ctx, catalog.Unproven, a.name)}
	for _, k := range list {
		errs = append(errs, c.catalog.Delete(ctx, catalog.Proofs, k.key()))
	}
	return errors.Join(errs...)
}
