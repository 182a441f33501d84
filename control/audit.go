package control

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
	"tidemark/internal/vfs"
)

// What lies in the directory audit/ of a data directory, where only we get at it: the key that checkpoints are signed with, they
// themselves, and the records that the catalog could not take.
const (
	auditDir        = "audit"
	auditKeyFile    = "key.pem"
	checkpointsFile = "checkpoints"
	spoolFile       = "waiting"
)

const (
	// checkpointPause is how often a checkpoint is made, if something was appended: what came after the last one can be cut off.
	checkpointPause = time.Minute
	// drainPause is how often it is tried to append what waits.
	drainPause = time.Second
	// lastLimit bounds what is done for the audit when the server stops.
	lastLimit = 5 * time.Second
)

// trail keeps the audit whole: records wait in it for the catalog, and checkpoints show that nobody changed what was appended.
type trail struct {
	spool *catalog.Spool // nil: the server did not come so far

	checkpointing sync.Mutex // held while a checkpoint is made

	mu      sync.Mutex
	key     ed25519.PrivateKey // guarded by mu; nil: it cannot be used
	newest  access.Checkpoint  // guarded by mu
	trouble error              // why no checkpoints are made: somebody has to look at it. Guarded by mu
	late    bool               // records wait, which was said. Guarded by mu
}

// openTrail finds what the last server left of records and checkpoints. That these are not what they should be is told, and keeps
// no server from serving its disks.
func (c *Control) openTrail(ctx context.Context) error {
	if err := errors.Join(vfs.MkdirAll(vfs.OS, c.path(auditDir)), os.Chmod(c.path(auditDir), 0o700)); err != nil {
		c.log.Error("the directory of the audit cannot be made: records that the catalog cannot take wait in memory only", "error", err)
	}
	path := c.path(auditDir, spoolFile)
	spool, err := catalog.OpenSpool(vfs.OS, path)
	if err != nil {
		aside := path + time.Now().UTC().Format(".damaged-20060102-150405")
		if e := vfs.Rename(vfs.OS, path, aside); e != nil {
			return errors.Join(err, e)
		}
		c.log.Error("the records that wait for the audit cannot be read, and were put aside", "file", aside, "error", err)
		c.event("error", "", "the records that waited for the audit cannot be read; they are now %s: %v", aside, err)
		if spool, err = catalog.OpenSpool(vfs.OS, path); err != nil {
			return err
		}
	}
	c.trail.spool = spool
	c.drainAudit(ctx)
	c.checkpointAudit(ctx)
	c.jobs.wg.Go(c.keepTrail)
	return nil
}

// keepTrail appends what waits and makes checkpoints, until the server stops.
func (c *Control) keepTrail() {
	drain, checkpoint := time.NewTicker(drainPause), time.NewTicker(checkpointPause)
	defer drain.Stop()
	defer checkpoint.Stop()
	for {
		select {
		case <-c.jobs.ctx.Done():
			return
		case <-drain.C:
			c.drainAudit(c.jobs.ctx)
		case <-checkpoint.C:
			c.checkpointAudit(c.jobs.ctx)
		}
	}
}

// closeTrail appends what waits, if that is possible now, and makes the last checkpoint.
func (c *Control) closeTrail() error {
	if c.trail.spool == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastLimit)
	defer cancel()
	c.drainAudit(ctx)
	c.checkpointAudit(ctx)
	return c.trail.spool.Close()
}

// RecordAudit puts the records of a request, which have its number and time, into the audit. They are durable when it returns: there or,
// while the catalog cannot take them, in a file, from which they are appended later. What is lost is told in the log, and counted.
func (c *Control) RecordAudit(ctx context.Context, records ...*access.AuditRecord) {
	var cause error
	if n, _ := c.trail.spool.Waiting(); n == 0 { // else it comes behind those
		if cause = c.catalog.AppendAudit(ctx, records...); cause != nil && c.giveReserve(cause) {
			cause = c.catalog.AppendAudit(ctx, records...)
		}
		if cause == nil {
			return
		}
	}
	first := records[0]
	kept, err := c.trail.spool.Keep(records...)
	switch {
	case !kept:
		c.log.Error("records of the audit are lost", "request", first.Request, "action", first.Action, "outcome", first.Outcome, "error", err)
	case err != nil:
		c.log.Error("records of the audit are kept in memory only until the catalog can take them", "request", first.Request, "action", first.Action, "error", err)
	}
	c.trail.mu.Lock()
	defer c.trail.mu.Unlock()
	if !c.trail.late && kept {
		c.trail.late = true
		c.log.Warn("the audit cannot be appended to now: its records are kept, and appended later", "file", c.path(auditDir, spoolFile), "error", cause)
	}
}

// drainAudit appends the records that wait, if the catalog can take them.
func (c *Control) drainAudit(ctx context.Context) {
	if n, _ := c.trail.spool.Waiting(); n == 0 {
		return
	}
	n, err := c.trail.spool.Drain(ctx, c.catalog)
	if err != nil && c.giveReserve(err) {
		var more int
		more, err = c.trail.spool.Drain(ctx, c.catalog)
		n += more
	}
	c.trail.mu.Lock()
	c.trail.late = c.trail.late && err != nil
	c.trail.mu.Unlock()
	switch {
	case n > 0:
		c.event("warning", "", "%d records of the audit, which the catalog could not take when it was time, were appended", n)
	case err != nil && !errors.Is(err, catalog.ErrAway) && ctx.Err() == nil:
		c.log.Error("records of the audit wait, for it cannot be appended to", "error", err)
	}
}

// checkpointAudit makes a checkpoint, if something was appended since the last one. It returns the newest that there is, and why there
// is no newer one.
func (c *Control) checkpointAudit(ctx context.Context) (access.Checkpoint, error) {
	c.trail.checkpointing.Lock()
	defer c.trail.checkpointing.Unlock()
	key, newest, err := c.makeCheckpoint(ctx)
	c.trail.mu.Lock()
	before := c.trail.trouble
	if key != nil {
		c.trail.key = key
	}
	switch {
	case err == nil:
		c.trail.newest, c.trail.trouble = newest, nil
	case tidemark.KindOf(err) == tidemark.Corrupt:
		c.trail.trouble = err
	}
	newest, now := c.trail.newest, c.trail.trouble
	c.trail.mu.Unlock()
	switch {
	case now != nil && (before == nil || before.Error() != now.Error()):
		c.log.Error("the audit is not what it should be", "error", now)
		c.event("error", "", "the audit is not what it should be: %v", now)
	case now == nil && before != nil:
		c.event("info", "", "the audit is what its checkpoints say again")
	case err != nil && now == nil && ctx.Err() == nil && !errors.Is(err, catalog.ErrAway):
		c.log.Warn("no checkpoint of the audit was made; it is tried again", "error", err)
	}
	return newest, err
}

// makeCheckpoint makes a checkpoint, and the key before the first one.
func (c *Control) makeCheckpoint(ctx context.Context) (key ed25519.PrivateKey, newest access.Checkpoint, err error) {
	keyPath, path := c.path(auditDir, auditKeyFile), c.path(auditDir, checkpointsFile)
	fresh := false
	key, err = readAuditKey(keyPath)
	if errors.Is(err, os.ErrNotExist) {
		fresh = true
		key, err = c.newAuditKey(keyPath+".new", path)
	} else if text, e := os.ReadFile(path); err == nil && (errors.Is(e, os.ErrNotExist) || e == nil && !bytes.Contains(text, []byte("\n"))) {
		err = c.noCheckpoints()
	}
	if err != nil {
		return nil, newest, err
	}
	newest, err = c.catalog.CheckpointAudit(ctx, vfs.OS, path, key)
	if err == nil && fresh { // a key has had a checkpoint: if there are none later, somebody took them away
		err = notWritten(vfs.Rename(vfs.OS, keyPath+".new", keyPath))
	}
	return key, newest, err
}

// noCheckpoints says that there are no checkpoints, and that there have been.
func (c *Control) noCheckpoints() error {
	return tidemark.Errorf(tidemark.Corrupt, "the checkpoints of the audit, %s, are gone", c.path(auditDir, checkpointsFile)).
		WithHint("bring them back from a copy; or move " + c.path(auditDir, auditKeyFile) + " away to begin anew")
}

// readCheckpoints reads the checkpoints of this server, of which there is one at least.
func (c *Control) readCheckpoints(key ed25519.PublicKey) ([]access.Checkpoint, error) {
	list, err := catalog.ReadCheckpoints(vfs.OS, c.path(auditDir, checkpointsFile), key)
	if err == nil && len(list) == 0 {
		err = c.noCheckpoints()
	}
	return list, err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}

// newAuditKey makes the key of the first checkpoint, in the file fresh. If one is there the server was killed before it had signed
// anything that counts, and goes on with it.
func (c *Control) newAuditKey(fresh, checkpoints string) (ed25519.PrivateKey, error) {
	key, err := readAuditKey(fresh)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return key, err
	}
	if exists(checkpoints) {
		return nil, tidemark.Errorf(tidemark.Corrupt, "the key of the audit's checkpoints is gone, and %s is there", checkpoints).
			WithHint("bring the key back from a copy of the data directory, or move that file away to begin anew")
	}
	_, key, err = ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return key, writeAuditKey(fresh, key)
}

// keyType is the type of PEM in which a key is kept, as PKCS #8.
const keyType = "PRIVATE KEY"

// writeAuditKey writes a key to a file that nobody else could read at any time, whole or not at all.
func writeAuditKey(path string, key ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return notWritten(err)
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return notWritten(err)
	}
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: keyType, Bytes: der}))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = vfs.Rename(vfs.OS, tmp, path)
	}
	return notWritten(err)
}

func notWritten(err error) error {
	if err == nil {
		return nil
	}
	return tidemark.Errorf(tidemark.Unavailable, "the key of the audit's checkpoints cannot be written: %w", err).WithHint("make room on the disk of the data directory")
}

// readAuditKey reads a key, from a file that only who runs the server can read and change.
func readAuditKey(path string) (ed25519.PrivateKey, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Corrupt, "the key of the audit's checkpoints cannot be read: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o077 != 0 || int(st.Uid) != os.Getuid() {
		return nil, tidemark.Errorf(tidemark.Corrupt, "others could read or change the key of the audit's checkpoints, %s", path).
			WithHint("chmod 600 it if you know why; or move it and the checkpoints away to begin anew")
	}
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return nil, err
	}
	if b, _ := pem.Decode(text); b != nil && b.Type == keyType {
		if k, err := x509.ParsePKCS8PrivateKey(b.Bytes); err == nil {
			if key, ok := k.(ed25519.PrivateKey); ok {
				return key, nil
			}
		}
	}
	return nil, tidemark.Errorf(tidemark.Corrupt, "%s is no key of checkpoints", path).
		WithHint("bring it back from a copy of the data directory, or move it and the checkpoints away to begin anew")
}

// AuditCheckpoint returns a copy of the newest checkpoint, to be kept elsewhere. One is made first, if that is possible now.
func (c *Control) AuditCheckpoint(ctx context.Context) (access.CheckpointCopy, error) {
	p, err := c.checkpointAudit(ctx)
	c.trail.mu.Lock()
	key := c.trail.key
	c.trail.mu.Unlock()
	if err != nil && (tidemark.KindOf(err) == tidemark.Corrupt || p.Time.IsZero()) {
		return access.CheckpointCopy{}, err
	}
	return access.CopyOf(p, key), nil
}

// VerifyAudit reads the whole audit, and holds it against the checkpoints of this server and against copies that were kept elsewhere.
func (c *Control) VerifyAudit(ctx context.Context, copies []access.CheckpointCopy) (r access.AuditResult, err error) {
	c.trail.mu.Lock()
	key, trouble := c.trail.key, c.trail.trouble
	c.trail.mu.Unlock()
	r.Waiting, _ = c.trail.spool.Waiting()
	var all []access.Checkpoint
	public := ""
	if key != nil {
		k := key.Public().(ed25519.PublicKey)
		public = base64.StdEncoding.EncodeToString(k)
		if all, err = c.readCheckpoints(k); err != nil {
			return r, err
		}
	}
	if r.Checkpoints = len(all); r.Checkpoints > 0 {
		newest := all[len(all)-1]
		r.Through, r.At = newest.Seq, &newest.Time
	}
	for _, one := range copies {
		p, err := one.Open()
		if err != nil {
			return r, err
		}
		if one.Key != public {
			r.OtherKeys++
		}
		r.Copies++
		r.CopiesThrough = max(r.CopiesThrough, p.Seq)
		all = append(all, p)
	}
	if r.Records, err = c.catalog.VerifyAudit(ctx, all); err == nil && trouble != nil {
		_, err = c.checkpointAudit(ctx) // is it so still?
	}
	return r, err
}

// TrailState is how the audit is kept.
type TrailState struct {
	Waiting int       // records that the catalog could not take yet
	Lost    int64     // records that are lost, since the server started
	Through int64     // the record up to which checkpoints reach
	At      time.Time // when the newest was made; zero: there is none
	Trouble error     // why none are made: somebody has to look at it
}

// Trail says how the audit is kept.
func (c *Control) Trail() (s TrailState) {
	s.Waiting, s.Lost = c.trail.spool.Waiting()
	c.trail.mu.Lock()
	defer c.trail.mu.Unlock()
	s.Through, s.At, s.Trouble = c.trail.newest.Seq, c.trail.newest.Time, c.trail.trouble
	return s
}

// warnOfTrail adds to a status what is wrong with the audit.
func (c *Control) warnOfTrail(s *tidemark.Status) {
	t := c.Trail()
	if t.Trouble != nil {
		s.Warnings = append(s.Warnings, fmt.Sprintf("the audit is not what it should be: %v", t.Trouble))
	}
	if t.Waiting > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%d records of the audit wait, for the catalog could not take them", t.Waiting))
	}
	if t.Lost > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%d records of the audit were lost since the server started: the catalog could not take them, and there was no room to keep them", t.Lost))
	}
}
