package agent

import (
	"context"
	"errors"
	"slices"

	"tidemark/app/filesystem"
	"tidemark/app/postgres"
	"tidemark/app/volume"
	"tidemark/mount"
)

// Found is what a host has that could be protected. What is ours is left out: clones, and disks that are shown or tapped there.
type Found struct {
	Clusters    []postgres.Cluster   `json:"clusters"`
	Filesystems []filesystem.Mounted `json:"filesystems"`
	Devices     []volume.Device      `json:"devices"`
}

// Discover looks at the agent's host: see [postgres.Discover], [filesystem.Discover] and [volume.Discover].
func (a *Agent) Discover(ctx context.Context) (Found, error) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	return do[Found](ctx, a, "discover", none{}, nil)
}

func doDiscover(ctx context.Context, s *session, _ none, _ func(any)) (f Found, err error) {
	attached, err := mount.List(s.places.Attached)
	if err != nil {
		return f, err
	}
	ours := func(device string) bool {
		return slices.ContainsFunc(attached, func(at *mount.Attachment) bool { return at.Device() == device })
	}
	var errs [3]error
	f.Clusters, errs[0] = postgres.Discover(ctx)
	f.Filesystems, errs[1] = filesystem.Discover()
	f.Devices, errs[2] = volume.Discover()
	f.Filesystems = slices.DeleteFunc(f.Filesystems, func(m filesystem.Mounted) bool { return ours(m.Device) })
	f.Devices = slices.DeleteFunc(f.Devices, func(d volume.Device) bool { return ours(d.Path) })
	return f, errors.Join(errs[:]...)
}
