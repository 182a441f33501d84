package control

import (
	"context"
	"strings"

	"tidemark"
	"tidemark/app/postgres"
)

// Discover lists what on this host could be protected: its PostgreSQL clusters.
func (c *Control) Discover(ctx context.Context) ([]tidemark.Discovered, error) {
	clusters, err := postgres.Discover(ctx)
	if err != nil {
		return nil, err
	}
	list := []tidemark.Discovered{}
	for _, k := range clusters {
		if strings.HasPrefix(k.DataDir, c.o.Dir+"/") {
			continue // a clone of ours
		}
		list = append(list, k.Discovered())
	}
	return list, nil
}
