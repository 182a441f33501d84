package journal

import (
	"errors"
	"io"
)

// scanWindow is how much is read at once of a segment whose records are looked for.
const scanWindow = 1 << 20

// scanRecords reads the records of a segment without an index, one by one. It stops at
// the first place that holds no whole record, and says whether a record behind
// it proves that something durable is missing there.
func scanRecords(f io.ReaderAt, size int64, h segmentHeader) (entries []entry, end int64, lost bool, err error) {
	w := window{f: f, size: size}
	salt, pos, at, newest := h.salt(), h.firstPos, int64(segmentHeaderSize), h.after
	for len(entries) < maxRecords {
		r, err := w.record(at, salt)
		if errors.Is(err, errNoRecord) || err == nil && (r.Pos != pos || r.Time <= newest) {
			break
		} else if err != nil {
			return nil, 0, false, err
		}
		entries = append(entries, entry{time: r.Time, off: r.Off, len: r.Len, at: uint32(at), size: r.size, kind: r.Kind, disk: r.Disk})
		at += footprint(int(r.size))
		newest = r.Time
		pos++
	}
	lost, err = provesLoss(&w, at, salt, pos)
	return entries, at, lost, err
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
