package tap

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"tidemark/internal/vfs"
)

// distrust is how far the tap has come with having everything sent again after a power cut, because its notes for
// one cannot be kept. A disk without a file of what is being written, or with an empty one, is sent whole ([readActive]).
type distrust struct {
	mu   sync.Mutex // held while it is tried; an outer one of Tap.mu
	why  error      // nil: the notes are kept
	done bool       // it outlives a power cut
	anew bool       // a sync of the directory has failed
}

// unsafe notes that the notes for a power cut cannot be kept: after one, all is sent again. If that cannot be noted, the status says
// so, and retryDistrust has to be called until it is.
func (t *Tap) unsafe(err error) {
	t.distrust.mu.Lock()
	defer t.distrust.mu.Unlock()
	if t.distrust.why != nil {
		return
	}
	t.distrust.why = err
	t.log.Error("after a power cut the whole disk will be sent again", "error", err)
	if err := t.tryDistrust(); err != nil {
		t.log.Error("and that could not be noted either; it is tried again", "error", err)
	}
}

// retryDistrust tries again what unsafe could not do. It returns nil if there is nothing to do any more.
func (t *Tap) retryDistrust() error {
	t.distrust.mu.Lock()
	defer t.distrust.mu.Unlock()
	if t.distrust.why == nil || t.distrust.done {
		return nil
	}
	err := t.tryDistrust()
	if err == nil {
		t.log.Info("it is noted now that after a power cut the whole disk will be sent again")
	}
	return err
}

// tryDistrust takes the files of what is being written away, durably. The caller holds distrust.mu.
func (t *Tap) tryDistrust() error {
	err := t.dropActive()
	t.distrust.done = err == nil
	if err != nil {
		err = fmt.Errorf("the tap's notes for a power cut can neither be kept (%w) nor removed (%w)", t.distrust.why, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unsure = err
	return err
}

// dropActive takes the files away. After a failed sync the kernel may say that the next one succeeds, and the removals
// before it are not durable all the same: then the names are written once more, as those of empty files.
func (t *Tap) dropActive() error {
	var errs []error
	for i := range t.disks {
		name := t.path(fmt.Sprintf("active-%d", i))
		if t.distrust.anew {
			errs = append(errs, vfs.WriteFile(t.o.fs, name, nil))
		} else if err := t.o.fs.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if !t.distrust.anew {
		err := vfs.SyncDir(t.o.fs, t.o.Dir)
		t.distrust.anew = err != nil
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
