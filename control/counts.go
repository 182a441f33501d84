package control

import (
	"context"
	"maps"
	"sync"

	"tidemark"
	"tidemark/catalog"
)

// Captured is what the captures and imports of an application have brought in since the server started, in bytes.
type Captured struct {
	Read, Changed, Stored int64
}

// captures counts what is brought in.
type captures struct {
	mu  sync.Mutex
	all map[string]Captured // by application; guarded by mu
}

func (c *captures) add(r tidemark.CaptureResult) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[string]Captured{}
	}
	n := c.all[r.Application]
	c.all[r.Application] = Captured{Read: n.Read + r.ReadBytes, Changed: n.Changed + r.ChangedBytes, Stored: n.Stored + r.StoredBytes}
}

// Captured returns what was captured of each application since the server started.
func (c *Control) Captured() map[string]Captured {
	c.captured.mu.Lock()
	defer c.captured.mu.Unlock()
	return maps.Clone(c.captured.all)
}

// CountJobs counts the jobs of each kind and state.
func (c *Control) CountJobs(ctx context.Context) ([]catalog.JobCount, error) {
	return c.catalog.CountJobs(ctx)
}

// Ready returns an error while requests cannot be answered: as long as the catalog cannot be read.
func (c *Control) Ready(ctx context.Context) error {
	_, err := c.catalog.Events(ctx, 1)
	return err
}
