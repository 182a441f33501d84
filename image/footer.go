package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A sealed pack ends in its footer: an entry per record, then a trailer. An entry
// is the record's distance from the end of the one before (usually 0), its head
// but for the checksum, and no content: enough to build the index. See docs/format/pack.md.
const (
	entrySize   = 4 + 4 + 4 + 32
	trailerSize = 32
	packMagic   = "TMPACK1\n"
)

// errNotFooter: the bytes are not the footer of a pack.
var errNotFooter = errors.New("not the footer of a pack")

// entry says where in its pack a record is.
type entry struct {
	head
	off     int64
	damaged bool // it was met by a scan, which gives it its number all the same
}

func (e entry) size() int64 { return headSize + int64(e.length) }
func (e entry) end() int64  { return e.off + e.size() }

// appendFooter appends the footer of a pack with these records to dst.
func appendFooter(dst []byte, id uint64, entries []entry) []byte {
	at := len(dst)
	var end int64
	for _, e := range entries {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(e.off-end))
		dst = append(dst, recordMagic, byte(e.kind)<<4|byte(e.codec), e.log, 1)
		dst = binary.LittleEndian.AppendUint32(dst, uint32(e.length))
		dst = append(dst, e.name[:]...)
		end = e.end()
	}
	dst = binary.LittleEndian.AppendUint64(dst, id)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(entries)))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(end))
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[at:], castagnoli))
	return append(dst, packMagic...)
}

// trailer is the fixed end of a pack.
type trailer struct {
	id    uint64
	count int
	end   int64 // of the last record
	crc   uint32
}

// footerSize is the length of entries and trailer.
func (t trailer) footerSize() int64 { return int64(t.count)*entrySize + trailerSize }

// parseTrailer reads the last trailerSize bytes of a pack of size bytes.
func parseTrailer(p []byte, size int64) (trailer, error) {
	if len(p) != trailerSize || string(p[24:]) != packMagic {
		return trailer{}, fmt.Errorf("%w: no magic at its end", errNotFooter)
	}
	t := trailer{
		id: binary.LittleEndian.Uint64(p), count: int(binary.LittleEndian.Uint32(p[8:])),
		end: int64(binary.LittleEndian.Uint64(p[12:])), crc: binary.LittleEndian.Uint32(p[20:]),
	}
	if t.end < 0 || t.end > size || t.footerSize() > size-t.end {
		return trailer{}, fmt.Errorf("%w: lengths do not fit %d bytes", errNotFooter, size)
	}
	return t, nil
}

// parseFooter reads a whole footer, of a pack of size bytes.
func parseFooter(p []byte, size int64) (trailer, []entry, error) {
	if len(p) < trailerSize {
		return trailer{}, nil, fmt.Errorf("%w: %d bytes", errNotFooter, len(p))
	}
	t, err := parseTrailer(p[len(p)-trailerSize:], size)
	if err != nil {
		return t, nil, err
	}
	if t.footerSize() != int64(len(p)) || crc32.Checksum(p[:len(p)-12], castagnoli) != t.crc {
		return t, nil, fmt.Errorf("%w: checksum does not match", errNotFooter)
	}
	entries := make([]entry, t.count)
	var end int64
	for i := range entries {
		q := p[i*entrySize:]
		var buf [headSize]byte
		copy(buf[:8], q[4:12])
		copy(buf[12:], q[12:entrySize])
		h, err := parseHead(buf[:])
		if err != nil {
			return t, nil, fmt.Errorf("%w: entry %d: %w", errNotFooter, i, err)
		}
		entries[i] = entry{head: h, off: end + int64(binary.LittleEndian.Uint32(q))}
		end = entries[i].end()
	}
	if end != t.end {
		return t, nil, fmt.Errorf("%w: records end at %d, trailer says %d", errNotFooter, end, t.end)
	}
	return t, entries, nil
}
