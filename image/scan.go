package image

import "bytes"

// scanWindow is how much of a pack is read at a time; a record fits twice.
const scanWindow = 4 << 20

// scanned is what the records of a pack say, read one by one.
type scanned struct {
	entries []entry
	end     int64 // of the last record or note
	synced  int64 // length that the last note says was durable
}

// scanSealed lists the records of a sealed pack whose footer cannot be read.
func (s *Store) scanSealed(p *pack) ([]entry, error) {
	c, err := s.scan(p, p.stored.Load())
	return c.entries, err
}

// scan lists the records in the first size bytes of a pack, up to the last that is whole. A record that is damaged is no end if a whole one follows it, nor is a
// place without any if a note behind it says that it was durable. Records are known by their number in the pack: what is damaged, and what cannot be found, keeps its own.
func (s *Store) scan(p *pack, size int64) (scanned, error) {
	var c scanned
	buf := make([]byte, min(size, scanWindow))
	for c.end < size {
		window := buf[:min(size-c.end, int64(len(buf)))]
		if err := s.readPack(p, window, c.end); err != nil {
			return c, err
		}
		from := c.end
		for c.next(s, p, window[c.end-from:]) {
		}
		if c.end > from {
			continue
		}
		found, err := s.passDamage(p, &c, size)
		if !found {
			return c, err
		}
	}
	return c, nil
}

// next takes what is at the front of b, the bytes of a pack from the end of the scan on; false if that is nothing whole.
func (c *scanned) next(s *Store, p *pack, b []byte) bool {
	if n, ok := parseNote(b, p.id, c.end); ok {
		c.synced, c.end = n.synced, c.end+noteSize
		return true
	}
	h, _, err := parseRecord(b)
	if err != nil {
		if damagedRecord(b, p.id, c.end) == 0 {
			return false
		}
		s.log.Error("a record of a pack is damaged", "pack", p.key, "offset", c.end)
		h, _ = parseHead(b) // which damagedRecord found good
	}
	e := entry{head: h, off: c.end, damaged: err != nil}
	c.entries = append(c.entries, e)
	c.end = e.end()
	return true
}

// passDamage goes on behind a note that says that there was more than what the scan came to.
func (s *Store) passDamage(p *pack, c *scanned, size int64) (found bool, err error) {
	n, at, err := s.findNote(p, c, size)
	if err != nil || at == 0 {
		return false, err
	}
	s.log.Error("records of a pack cannot be read", "pack", p.key, "offset", c.end, "bytes", at-c.end, "records", n.count-len(c.entries))
	known, err := s.index.within(p.id, c.end, at)
	if err != nil {
		return false, err
	}
	for off := c.end; len(c.entries) < n.count; off = c.entries[len(c.entries)-1].end() {
		e, ok := known[uint32(len(c.entries))]
		if !ok { // nobody knows its name, and it only counts
			e = entry{head: head{kind: kindChunk, codec: codecRaw, log: 12}, off: off, damaged: true}
		} else if e.damaged, err = s.unreadable(p, e); err != nil {
			return false, err
		}
		c.entries = append(c.entries, e)
	}
	c.synced, c.end = n.synced, at+noteSize
	return true, nil
}

// unreadable reports whether a record that the index knows of is damaged.
func (s *Store) unreadable(p *pack, e entry) (bool, error) {
	b := make([]byte, e.size())
	if err := s.readPack(p, b, e.off); err != nil {
		return false, err
	}
	h, _, err := parseRecord(b)
	return err != nil || h.name != e.name, nil
}

// findNote returns the first note behind the end of a scan that says that there was more, and its offset, or 0.
func (s *Store) findNote(p *pack, c *scanned, size int64) (note, int64, error) {
	buf := make([]byte, min(size-c.end, scanWindow))
	for from := c.end; from+noteSize <= size; {
		window := buf[:min(size-from, int64(len(buf)))]
		if err := s.readPack(p, window, from); err != nil {
			return note{}, 0, err
		}
		for i := 0; i < len(window); i++ {
			k := bytes.IndexByte(window[i:], noteMagic)
			if k < 0 {
				break
			}
			i += k
			n, ok := parseNote(window[i:], p.id, from+int64(i))
			if ok && n.synced > c.end && n.count >= len(c.entries) {
				return n, from + int64(i), nil
			}
		}
		from += int64(len(window)) - noteSize + 1
	}
	return note{}, 0, nil
}
