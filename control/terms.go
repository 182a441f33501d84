package control

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
)

// What somebody may do is decided when he asks. A job that waits, or is begun again, begins later than that, when he may do less, or is no
// user any more, or what it was asked of is published no more. So what was decided about is kept with the job, and decided about again.

// terms are what is looked at again when a job begins that was not begun when it was asked for.
type terms struct {
	// Needs are what its user has to be allowed. None: it is decided about elsewhere, as a part of a run by its step; or nobody has to be,
	// as for what is the server's own or the administrator's; or an older release recorded it.
	Needs []Need `json:"needs,omitempty"`
	// Token is the API token that it was asked for with, which narrows what he may do; nil: none.
	Token *access.Token `json:"token,omitempty"`
	// Of is what it takes the data of, or writes over, where that is not its application; nil: nothing, or its request says it.
	Of *meant `json:"of,omitempty"`
	// Source is the application whose data its application has, and Via are the clones in between; empty: that was not there yet.
	Source string   `json:"source,omitempty"`
	Via    []string `json:"via,omitempty"`
}

// meant is an application or consistency group that somebody has named, for others may have the name, or be its members, by the time a job begins.
type meant struct {
	Name  string `json:"name"`
	Group bool   `json:"group,omitempty"`
	// ID is the first ID of the application, or are those of all members.
	ID string `json:"id"`
}

// idOf is the ID of who is meant by that now; empty: nobody.
func (c *Control) idOf(m meant) string {
	if !m.Group {
		return c.firstIDOf(m.Name)
	}
	var ids []string
	for _, a := range c.membersOf(m.Name) {
		ids = append(ids, a.firstID())
	}
	return strings.Join(ids, " ")
}

// terms are those of a job that is asked for so.
func (c *Control) terms(ctx context.Context, how Ask, w *work) (t terms, err error) {
	if c.firstIDOf(w.app) != "" {
		if t.Source, t.Via, err = c.lineage(ctx, w.app); err != nil {
			return t, err
		}
	}
	m := w.means
	if m.Name = cmp.Or(m.Name, w.of); m.Name != "" {
		m.ID = c.idOf(m)
		t.Of = &m
	}
	if how.By == "" {
		return t, nil
	}
	t.Token = how.Token
	for _, n := range how.Needs {
		if n.Copy != nil { // by then it is counted among what comes
			there := *n.Copy
			there.New, n.Copy = 0, &there
		}
		t.Needs = append(t.Needs, n)
	}
	return t, nil
}

// termsOf are those of a recorded job.
func termsOf(j *catalog.Job) (t terms, err error) {
	if len(j.Terms) == 0 { // of an older release
		return t, nil
	}
	if err := json.Unmarshal(j.Terms, &t); err != nil {
		return t, fmt.Errorf("read the terms of job %d: %w", j.ID, err)
	}
	return t, nil
}

// mayBegin refuses a recorded job that would not be what was asked for, or that may not be done any more.
func (c *Control) mayBegin(ctx context.Context, j *catalog.Job) error {
	t, err := termsOf(j)
	if err != nil {
		return err
	}
	if err := c.isStill(j, t.Of); err != nil {
		return err
	}
	return c.stillMay(ctx, j, t)
}

// stillMay refuses a job whose user may not ask for it any more, which is in the audit then.
func (c *Control) stillMay(ctx context.Context, j *catalog.Job, t terms) error {
	if len(t.Needs) == 0 {
		return nil
	}
	decided, err := c.mayAll(ctx, askerOf(j.Job, t.Token), t.Needs)
	if tidemark.KindOf(err) != tidemark.Denied {
		return err
	}
	err = fmt.Errorf("this %s may not be begun any more: %w", j.Kind, err)
	if len(decided) == 0 {
		n := t.Needs[0]
		decided = []Decided{{Action: n.Action, Object: access.Object{Kind: n.Kind, Name: n.name()}}}
	}
	one := access.AuditRecord{User: j.AskedBy, Method: access.ByJob, Request: fmt.Sprintf("job %d", j.ID), Outcome: access.Refused, Detail: Explain(err).Message}
	c.recordDecided(one, t.Token, decided)
	return err
}
