package control

import (
	"context"
	"maps"
	"sync"

	"tidemark"
	"tidemark/agent"
	"tidemark/catalog"
)

// Captured is what the captures and imports of an application have brought in since the server started, in bytes; and, where its log comes from another
// host, what came of that, and as how much it was carried.
type Captured struct {
	Read, Changed, Stored int64
	Log, LogCarried       int64
}

// captures counts what is brought in.
type captures struct {
	mu  sync.Mutex
	all map[string]Captured // by application; guarded by mu

	logs map[string]*agent.Carried // of logs that come from other hosts, by application; guarded by mu
}

// log is the count of what comes of an application's log.
func (c *captures) log(application string) *agent.Carried {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.logs == nil {
		c.logs = map[string]*agent.Carried{}
	}
	if c.logs[application] == nil {
		c.logs[application] = &agent.Carried{}
	}
	return c.logs[application]
}

func (c *captures) add(r tidemark.CaptureResult) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[string]Captured{}
	}
	n := c.all[r.Application]
	n.Read, n.Changed, n.Stored = n.Read+r.ReadBytes, n.Changed+r.ChangedBytes, n.Stored+r.StoredBytes
	c.all[r.Application] = n
}

// Captured returns what was captured of each application since the server started.
func (c *Control) Captured() map[string]Captured {
	c.captured.mu.Lock()
	defer c.captured.mu.Unlock()
	all := map[string]Captured{}
	maps.Copy(all, c.captured.all)
	for name, x := range c.captured.logs {
		n := all[name]
		n.Log, n.LogCarried = x.Plain.Load(), x.Packed.Load()
		all[name] = n
	}
	return all
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
