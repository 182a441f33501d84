package control

import (
	"context"
	"fmt"

	"tidemark"
)

// Discover lists what on this host could be protected: its PostgreSQL clusters, clones left out.
func (c *Control) Discover(ctx context.Context) ([]tidemark.Discovered, error) {
	clusters, err := c.agent.DiscoverPostgres(ctx)
	if err != nil {
		return nil, err
	}
	list := []tidemark.Discovered{}
	for _, k := range clusters {
		d := tidemark.Discovered{Type: tidemark.TypePostgres, Source: k.Conn, Size: k.Bytes,
			Detail: fmt.Sprintf("PostgreSQL %d in %s", k.Version, k.DataDir), Labels: map[string]string{"data_dir": k.DataDir, "name": k.Name}}
		if k.Conn == "" {
			d.Source, d.Detail = "-", d.Detail+", not running: start it to protect it"
		}
		list = append(list, d)
	}
	return list, nil
}
