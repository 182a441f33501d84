package catalog

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/bits"
	"sync"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/internal/vfs"
)

// MaxSpooled is how many records a [Spool] has room for: with texts as long as they may be they take some 40 MiB. Half of it at most
// is for records of what was refused, and of what nobody known asked for: who may do nothing cannot crowd out what was done.
const MaxSpooled = 10_000

// AuditLost is the action of a record that says how many records were lost.
const AuditLost access.Action = "audit.lost"

// Spool keeps records of the audit that cannot be appended now, in order, in memory and in a file of checksummed lines
// (docs/format/audit.md). Its methods may be called concurrently.
type Spool struct {
	files vfs.FS
	path  string

	draining sync.Mutex // held by who appends what waits: one at a time

	mu      sync.Mutex
	waiting []spooled // oldest first; guarded by mu
	records int       // that waiting has; guarded by mu
	lost    *loss     // what was lost behind all that waits; guarded by mu
	total   int64     // of lost records, since it was opened; guarded by mu
	file    vfs.File  // nil: it is written as a whole the next time. Guarded by mu
	size    int64     // of file; guarded by mu
	failed  error     // why the file lacks something that waits; guarded by mu
	retry   time.Time // when it is tried again to write all of it; guarded by mu
	closed  bool      // guarded by mu
}

var (
	errSpoolFull   = errors.New("there is no room to keep more of them until the catalog can take them")
	errSpoolClosed = errors.New("the server has stopped")
)

// spooled is a line: the records of a request or, at the end, what was lost.
type spooled struct {
	Records []*access.AuditRecord `json:"records,omitempty"`
	Lost    *loss                 `json:"lost,omitempty"`
}

// loss counts records that were lost, and becomes a record itself.
type loss struct {
	Records int64     `json:"records"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Request string    `json:"request"`         // of the record that it becomes
	Least   bool      `json:"least,omitempty"` // there may be more: not every count is written
}

func (l *loss) record() *access.AuditRecord {
	more := ""
	if l.Least {
		more = " or more"
	}
	return &access.AuditRecord{Time: l.First, Request: l.Request, Action: AuditLost, Kind: access.KindAudit, Outcome: access.Failed,
		Detail: fmt.Sprintf("%d%s records of what was asked for from %s to %s are lost: the catalog could not take them, and there was no room to keep them",
			l.Records, more, l.First.Format(time.RFC3339), l.Last.Format(time.RFC3339))}
}

// OpenSpool opens the spool whose file is at path; its directory is there. A last line that was cut is left out: nobody was told that
// it is kept. Other lines that cannot be read are counted as lost. If err is not nil, the file was not touched.
func OpenSpool(files vfs.FS, path string) (*Spool, error) {
	s := &Spool{files: files, path: path}
	text, err := vfs.ReadFile(files, path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, wrap(err, "read the records that the audit does not have yet")
	}
	s.read(text)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = s.rewrite() // behind a line that was cut nothing can be appended
	return s, nil
}

// read takes what a file has.
func (s *Spool) read(text []byte) {
	for len(text) > 0 {
		line, rest, whole := bytes.Cut(text, []byte("\n"))
		text = rest
		e, ok := parseSpooled(line)
		switch {
		case (!ok || !whole) && len(rest) == 0:
		case !ok:
			s.lose(time.Now(), 1, true)
		case e.Lost != nil:
			if s.lost != nil && s.lost.Request != e.Lost.Request {
				s.settle()
			}
			s.lost = e.Lost
			s.lost.Least = s.lost.Least || s.lost.Records > 1
		default:
			if s.lost != nil && s.lost.Request == e.Records[0].Request {
				s.lost = nil // it is that record
			}
			s.settle()
			s.push(e)
		}
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (e spooled) line() []byte {
	body, err := json.Marshal(e)
	if err != nil {
		panic(err) // of texts, numbers and times
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(body, castagnoli), body)
}

// parseSpooled reads a line, without its newline.
func parseSpooled(line []byte) (e spooled, ok bool) {
	sum, body, found := bytes.Cut(line, []byte(" "))
	if !found || string(sum) != fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)) {
		return e, false
	}
	if json.Unmarshal(body, &e) != nil || (len(e.Records) > 0) == (e.Lost != nil) {
		return e, false
	}
	for _, r := range e.Records {
		if r == nil {
			return e, false
		}
	}
	return e, true
}

// push adds a line behind all that waits.
func (s *Spool) push(e spooled) {
	s.waiting = append(s.waiting, e)
	s.records += len(e.Records)
}

// lose counts records that are lost.
func (s *Spool) lose(at time.Time, n int64, least bool) {
	if s.lost == nil {
		s.lost = &loss{First: at.UTC(), Request: rand.Text()[:12]}
	}
	s.lost.Last = at.UTC()
	s.lost.Records += n
	s.lost.Least = s.lost.Least || least
	s.total += n
}

// loseNow counts records that are lost, and writes the count each time that it has about doubled: a loss makes few lines, however
// large it is.
func (s *Spool) loseNow(at time.Time, n int64) error {
	before := int64(0)
	if s.lost != nil {
		before = s.lost.Records
	}
	s.lose(at, n, false)
	if bits.Len64(uint64(before)) == bits.Len64(uint64(s.lost.Records)) {
		return nil
	}
	return s.write(spooled{Lost: s.lost})
}

// settle puts what was lost behind what waits, as a record.
func (s *Spool) settle() (e spooled, some bool) {
	if s.lost == nil {
		return e, false
	}
	r := s.lost.record()
	r.Seal(0, access.Hash{})
	e, s.lost = spooled{Records: []*access.AuditRecord{r}}, nil
	s.push(e)
	return e, true
}

// Keep keeps the records of a request, of which there is one at least, and which have its number and time, until they are appended. If
// it reports false they are lost, and the error says why: where there was no room for them, they are counted in a record of their own.
// If it reports true with an error they are kept in memory only.
func (s *Spool) Keep(records ...*access.AuditRecord) (kept bool, err error) {
	e := spooled{}
	for _, r := range records {
		one := *r
		one.Seal(0, access.Hash{}) // no longer than it will be
		e.Records = append(e.Records, &one)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false, errSpoolClosed
	}
	room := MaxSpooled
	first := e.Records[0]
	known := first.Method.Known() || first.Method == access.ByRun || first.Method == access.ByHost
	if first.Outcome == access.Refused || !known {
		room /= 2
	}
	if s.records+len(records)+1 > room {
		return false, errors.Join(errSpoolFull, s.loseNow(e.Records[0].Time, int64(len(records))))
	}
	var lines []spooled
	if l, some := s.settle(); some {
		lines = append(lines, l)
	}
	s.push(e)
	return true, s.write(append(lines, e)...)
}

// spoolPause is how long a file that could not be written is left alone.
const spoolPause = time.Second

// write appends lines to the file. After a failure the whole of it is written anew, for nobody knows what it has.
func (s *Spool) write(lines ...spooled) error {
	if s.file == nil {
		if s.failed == nil || time.Now().After(s.retry) {
			s.failed = s.rewrite()
		}
		return s.failed
	}
	var text []byte
	for _, e := range lines {
		text = append(text, e.line()...)
	}
	_, err := s.file.WriteAt(text, s.size)
	if err == nil {
		err = s.file.SyncData()
	}
	if err != nil {
		s.failed = errors.Join(err, s.closeFile())
		return s.failed
	}
	s.size += int64(len(text))
	return nil
}

// rewrite replaces the file by all that waits.
func (s *Spool) rewrite() error {
	s.retry = time.Now().Add(spoolPause)
	err := s.closeFile()
	var text []byte
	for _, e := range s.waiting {
		text = append(text, e.line()...)
	}
	if s.lost != nil {
		text = append(text, spooled{Lost: s.lost}.line()...)
	}
	if err = errors.Join(err, vfs.WriteFile(s.files, s.path, text)); err != nil {
		return err
	}
	s.file, err = vfs.OpenReadWrite(s.files, s.path)
	s.size = int64(len(text))
	return err
}

func (s *Spool) closeFile() error {
	f := s.file
	s.file = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

// Waiting returns how many records wait to be appended, and how many were lost since the spool was opened.
func (s *Spool) Waiting() (records int, lost int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	records = s.records
	if s.lost != nil {
		records++
	}
	return records, s.total
}

// spoolBatch is how many requests are appended in one transaction.
const spoolBatch = 100

// Drain appends all that waits to the audit of c, in order, each once, and returns how many records that were. What could not be
// appended goes on to wait.
func (s *Spool) Drain(ctx context.Context, c *Catalog) (n int, err error) {
	s.draining.Lock()
	defer s.draining.Unlock()
	for {
		batch := s.oldest()
		if len(batch) == 0 {
			return n, nil
		}
		if err := c.AppendAuditOnce(ctx, batch...); err != nil {
			return n, s.put(n > 0, err)
		}
		n += s.forget(len(batch))
	}
}

// oldest returns copies of what has waited longest: they are sealed while others write the file.
func (s *Spool) oldest() (batch [][]*access.AuditRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		s.settle()
	}
	for _, e := range s.waiting[:min(len(s.waiting), spoolBatch)] {
		var records []*access.AuditRecord
		for _, r := range e.Records {
			one := *r
			records = append(records, &one)
		}
		batch = append(batch, records)
	}
	return batch
}

// forget lets go of the oldest requests, which were appended. The file goes with the last one; should it come back after a power cut,
// what it has is not appended again.
func (s *Spool) forget(requests int) (records int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.waiting[:requests] {
		records += len(e.Records)
	}
	s.waiting = append([]spooled(nil), s.waiting[requests:]...)
	s.records -= records
	if len(s.waiting) == 0 && s.lost == nil {
		_ = s.closeFile()
		_ = s.files.Remove(s.path)
		s.failed = nil
	}
	return records
}

// put brings the file up to date when it was not possible to append all: so it does not grow, and what it lacks comes in.
func (s *Spool) put(shrunk bool, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if shrunk || s.failed != nil && time.Now().After(s.retry) {
		s.failed = s.rewrite()
	}
	return err
}

// Close leaves what waits to the next [OpenSpool]. Nothing is kept afterwards.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	err := s.closeFile()
	if s.failed != nil && s.records > 0 {
		err = errors.Join(err, tidemark.Errorf(tidemark.Unavailable, "%d records of the audit are lost: %w", s.records, s.failed))
	}
	return err
}
