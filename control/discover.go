package control

import (
	"context"
	"fmt"

	"tidemark"
	"tidemark/app/postgres"
)

// Discover lists what on a host could be protected: its PostgreSQL clusters, file systems and block devices. What is ours is left out.
func (c *Control) Discover(ctx context.Context, spec tidemark.DiscoverSpec) ([]tidemark.Discovered, error) {
	x, err := c.agentOn(spec.Host)
	if err != nil {
		return nil, err
	}
	found, err := x.Discover(ctx)
	if err != nil {
		return nil, err
	}
	list := []tidemark.Discovered{}
	for _, k := range found.Clusters {
		list = append(list, describeCluster(k))
	}
	for _, m := range found.Filesystems {
		list = append(list, tidemark.Discovered{Type: tidemark.TypeFilesystem, Source: m.Dir, Size: m.Size, Detail: fmt.Sprintf("%s on %s", m.Type, m.Device),
			Labels: map[string]string{"device": m.Device, "filesystem": m.Type}})
	}
	for _, d := range found.Devices {
		v := tidemark.Discovered{Type: tidemark.TypeVolume, Source: d.Path, Size: d.Size, Detail: "not in use"}
		if d.Use != "" {
			v.Detail = d.Use
		}
		if a, ok := c.tapOf(spec.Host, d.Path); ok {
			v.Detail = "tapped, as " + a.name
		}
		if d.Model != "" {
			v.Labels = map[string]string{"model": d.Model}
		}
		list = append(list, v)
	}
	return list, nil
}

func describeCluster(k postgres.Cluster) tidemark.Discovered {
	d := tidemark.Discovered{Type: tidemark.TypePostgres, Source: k.Conn, Size: k.Bytes,
		Detail: fmt.Sprintf("PostgreSQL %d in %s", k.Version, k.DataDir), Labels: map[string]string{"data_dir": k.DataDir, "name": k.Name}}
	if k.Conn == "" {
		d.Source, d.Detail = "-", d.Detail+", not running: start it to protect it"
	}
	return d
}
