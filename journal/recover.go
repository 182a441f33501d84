package journal

import (
	"errors"
	"io"
)

// scanWindow is how much is read at once of a segment whose records are looked for.
const scanWindow = 1 << 20

// scanned is what a segment without an index says of itself.
type scanned struct {
	entries []entry
	end     int64  // of the records that are whole, one behind the other
	durable uint64 // the newest position that one of them says was durable
	lost    bool   // a record behind the end says that something was durable there
}

// scanRecords reads the records of a segment without an index, one by one, up to the first place that holds no whole record.
func scanRecords(f io.ReaderAt, size int64, h segmentHeader) (c scanned, err error) {
	w := window{f: f, size: size}
	salt, pos, newest := h.salt(), h.firstPos, h.after
	c.end = segmentHeaderSize
	for len(c.entries) < maxRecords {
		r, err := w.record(c.end, salt)
		if errors.Is(err, errNoRecord) || err == nil && (r.Pos != pos || r.Time <= newest) {
			break
		} else if err != nil {
			return scanned{}, err
		}
		c.entries = append(c.entries, entry{time: r.Time, off: r.Off, len: r.Len, at: uint32(c.end), size: r.size, kind: r.Kind, disk: r.Disk})
		c.end += footprint(int(r.size))
		c.durable = max(c.durable, r.durable)
		newest = r.Time
		pos++
	}
	c.lost, err = provesLoss(&w, c.end, salt, pos)
	return c, err
}

// doubtful returns where the bytes begin of which nothing says that they are durable.
func (c *scanned) doubtful(firstPos uint64) int64 {
	switch n := c.durable + 1 - firstPos; {
	case c.durable < firstPos:
		return 0 // the segment's header, too
	case n < uint64(len(c.entries)):
		return int64(c.entries[n].at)
	}
	return c.end
}

// provesLoss looks for a header behind the end of the good records that was
// appended when position pos was durable already.
func provesLoss(w *window, at int64, salt uint32, pos uint64) (bool, error) {
	for ; at+headerSize <= w.size; at += recordAlign {
		b, err := w.bytes(at, headerSize)
		if err != nil {
			return false, err
		}
		if h, err := parseHeader(b, salt); err == nil && h.durable >= pos {
			return true, nil
		}
	}
	return false, nil
}

// window is a stretch of a file in memory, at most that of one record and scanWindow.
type window struct {
	f    io.ReaderAt
	size int64
	at   int64
	data []byte
}

// record returns the header of the record at an offset, whose payload is whole, or errNoRecord.
func (w *window) record(at int64, salt uint32) (header, error) {
	b, err := w.bytes(at, headerSize)
	if err != nil {
		return header{}, err
	}
	h, err := parseHeader(b, salt)
	if err != nil {
		return h, err
	}
	if b, err = w.bytes(at, headerSize+int(h.size)); err != nil {
		return h, err
	}
	return parseRecord(b, salt)
}

// bytes returns n bytes from offset at, or fewer if the file ends before. They are good until the next call.
func (w *window) bytes(at int64, n int) ([]byte, error) {
	if n = int(min(int64(n), w.size-at)); n <= 0 {
		return nil, nil
	}
	if at < w.at || at+int64(n) > w.at+int64(len(w.data)) {
		if err := w.move(at, n); err != nil {
			return nil, err
		}
	}
	from := at - w.at
	return w.data[from:][:n], nil
}

// move reads at least n bytes from offset at; they are in the file.
func (w *window) move(at int64, n int) error {
	want := int(min(int64(max(n, scanWindow)), w.size-at))
	if cap(w.data) < want {
		w.data = make([]byte, 0, max(want, scanWindow))
	}
	w.at, w.data = at, w.data[:want]
	if k, err := w.f.ReadAt(w.data, at); err != nil && !(errors.Is(err, io.EOF) && k == want) {
		w.data = w.data[:0]
		return err
	}
	return nil
}
