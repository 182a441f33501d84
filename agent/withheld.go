package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"tidemark"
	"tidemark/internal/vfs"
)

// Tapped disks are withheld from production while a restore in place writes to them. A host that is restarted in the middle of that would else
// start production on what is neither the one state nor the other. A file in the tap's directory says so, because neither the
// server nor its job may be there when production looks for its disks.

// withheldName is that file.
const withheldName = "withheld"

// withheldText is what it tells who finds it.
const withheldText = "A restore in place writes to these disks, which are neither what they were nor what they should be. Until it has ended they are not shown.\n"

// withholding says which disks are withheld, or not any more.
type withholding struct {
	Tapping
	On bool `json:"on"`
}

// WithholdTap withholds tapped disks from production, or no more, and reports whether that is new. Their devices are not linked then, not after a
// restart of the host either, and only [Places.OpenTapped] finds them. It is durable when WithholdTap returns.
func (a *Agent) WithholdTap(ctx context.Context, t Tapping, on bool) (changed bool, err error) {
	return do[bool](ctx, a, "tap-withhold", withholding{t, on}, nil)
}

func doWithholdTap(_ context.Context, s *session, w withholding, _ func(any)) (changed bool, err error) {
	if err := w.check(); err != nil {
		return false, err
	}
	path := filepath.Join(s.tapDir(w.Timeline), withheldName)
	if w.On {
		if changed, err = s.withheld(w.Timeline); err != nil {
			return false, err
		}
		if changed = !changed; changed {
			err = vfs.WriteFile(vfs.OS, path, []byte(withheldText))
		}
		return changed, errors.Join(err, s.hide(w.Tapping, false))
	}
	err = os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = vfs.SyncDir(vfs.OS, filepath.Dir(path))
	}
	return err == nil, errors.Join(err, s.show(w.Tapping))
}

// withheld reports whether the disks of a tap are withheld.
func (s *session) withheld(timeline string) (bool, error) {
	_, err := os.Lstat(filepath.Join(s.tapDir(timeline), withheldName))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// show links those of the disks that are attached. The others are when they are.
func (s *session) show(t Tapping) error {
	var errs []error
	for _, d := range t.Disks {
		at, ok, err := s.attached(t.Application, d.Name)
		if err == nil && ok && at.Alive() {
			err = linkDevice(s.places.Device(t.Application, d.Name, len(t.Disks)), at.Device())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// hide removes the links to the disks, or only to those that nobody shows: after a restart of the host they lead to anything.
func (s *session) hide(t Tapping, dead bool) error {
	var errs []error
	for _, d := range t.Disks {
		at, ok, err := s.attached(t.Application, d.Name)
		if err == nil && !(dead && ok && at.Alive()) {
			err = unlink(s.places.Device(t.Application, d.Name, len(t.Disks)))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func unlink(link string) error {
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// shownDevice is the device of a tapped disk, also where it is withheld.
func (p Places) shownDevice(t Tapping, d TapDisk) (string, error) {
	s := &session{places: p}
	at, ok, err := s.attached(t.Application, d.Name)
	if err != nil {
		return "", err
	}
	if ok && !at.Alive() {
		return "", tidemark.Errorf(tidemark.Unavailable, "disk %s of %s is not shown for now", d.Name, t.Application).WithHint("`tidemark status` says how the tap is")
	}
	if ok {
		return at.Device(), nil
	}
	return p.Device(t.Application, d.Name, len(t.Disks)), nil
}
