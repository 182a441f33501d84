package delta

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"

	"golang.org/x/sys/unix"

	"tidemark/internal/vfs"
)

// chunkSize is how much of a file is looked for by its content, in bytes: a file is chunks from its begin on, and the last may be shorter.
const chunkSize = maxData

// sum names the content of a chunk. It is of a cryptographic hash: the chunk that is found may be of a file of somebody else on the same host,
// who must not be able to have his content taken for another's.
type sum [sha256.Size]byte

func (s sum) key() uint64 { return binary.BigEndian.Uint64(s[:]) }

// place is where a chunk was staged: of the file whose path is at an offset of a table, the chunk with a number.
type place struct {
	key    uint64 // the begin of its sum
	path   uint32
	number uint32
}

func byKey(a, b place) int { return cmp.Compare(a.key, b.key) }

func byFile(a, b place) int {
	return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.number, b.number))
}

// The index of the chunks of a staging directory is a header of indexHead bytes: indexMagic, and the lengths of the table of paths in bytes and of
// the places in number; then the table, each path with its length before it; then the places, sorted by key.
//
// It is a hint and a cache: what it leads to is read and hashed before it is used.
const (
	indexMagic = "tmchunk1"
	indexHead  = 24
	placeSize  = 16
)

func (p place) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, p.key)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, p.path), p.number)
}

func readPlace(b []byte) place {
	return place{binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])}
}

// index is what a file has of an index. A nil *index is an empty one.
type index struct {
	f      *os.File
	table  int64 // length
	places int
}

var errNoIndex = errors.New("this is no index of chunks")

// openIndex opens the index that a Receive has left in a file.
func openIndex(path string) (*index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	x, err := newIndex(f)
	if err != nil {
		f.Close()
	}
	return x, err
}

func newIndex(f *os.File) (*index, error) {
	var head [indexHead]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	table, places := binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint64(head[16:])
	if string(head[:8]) != indexMagic || table > math.MaxUint32 || places > 1<<40 || st.Size() != indexHead+int64(table)+placeSize*int64(places) {
		return nil, errNoIndex
	}
	return &index{f, int64(table), int(places)}, nil
}

func (x *index) close() {
	if x != nil {
		x.f.Close() // it was only read
	}
}

// at is the place with a number; one that cannot be read leads nowhere.
func (x *index) at(i int) place {
	var b [placeSize]byte
	if _, err := x.f.ReadAt(b[:], indexHead+x.table+int64(i)*placeSize); err != nil {
		return place{key: math.MaxUint64, path: math.MaxUint32}
	}
	return readPlace(b[:])
}

// mostPlaces is how many places of one chunk are looked at.
const mostPlaces = 4

// find returns where chunks with a key were staged.
func (x *index) find(key uint64) (found []place) {
	if x == nil {
		return nil
	}
	for i := sort.Search(x.places, func(i int) bool { return x.at(i).key >= key }); i < x.places && len(found) < mostPlaces; i++ {
		p := x.at(i)
		if p.key != key {
			break
		}
		found = append(found, p)
	}
	return found
}

// path returns the path at an offset of the table.
func (x *index) path(off uint32) (string, error) { return pathAt(x.f, indexHead, x.table, off) }

// pathAt reads a path of a table with a length that begins at an offset of a file.
func pathAt(f io.ReaderAt, begin, length int64, off uint32) (string, error) {
	r := bufio.NewReaderSize(io.NewSectionReader(f, begin+int64(off), max(length-int64(off), 0)), 256)
	return readPath(r)
}

func readPath(r *bufio.Reader) (string, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return "", err
	}
	if n > maxPath {
		return "", errNoIndex
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", errors.Join(errNoIndex, err)
	}
	return string(b), nil
}

// maxPath bounds a path in an index, in bytes. Longer ones are not noted.
const maxPath = 64 << 10

// notes are the chunks that a Receive has staged, until they are in the index. They may be used by several goroutines.
type notes struct {
	mu    sync.Mutex
	table *os.File // of paths; without a name
	size  int64    // of the table
	tail  map[uint64]place
	runs  [][]place // sorted by key, each more than twice as long as the next
	count int
}

const (
	// tailSize is how many places are noted before they are sorted.
	tailSize = 4096
	// mostNoted bounds what is noted in one Receive: 256 GiB of new content, or 4 million files. That needs 64 MiB of memory, and twice as much when it is
	// saved. The rest is not found by its content.
	mostNoted = 4 << 20
)

// newNotes makes notes, whose table is in a directory.
func newNotes(dir string) (*notes, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("note chunks: %w", err)
	}
	return &notes{table: f, tail: map[uint64]place{}}, nil
}

// named is a file that chunks are noted of.
type named struct {
	path string
	at   uint32 // in the table, if in
	in   bool
}

// add notes a chunk. What cannot be noted is not found by its content, and nothing else.
func (n *notes) add(s sum, f *named, number int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.count >= mostNoted || number > math.MaxUint32 || len(f.path) > maxPath {
		return
	}
	if !f.in {
		at, err := n.appendPath(f.path)
		if err != nil {
			return
		}
		f.at, f.in = at, true
	}
	n.count++
	n.tail[s.key()] = place{s.key(), f.at, uint32(number)}
	if len(n.tail) >= tailSize {
		n.sortTail()
	}
}

func (n *notes) appendPath(path string) (uint32, error) {
	if n.size > math.MaxUint32-2*maxPath {
		return 0, errNoIndex
	}
	b := appendBytes(nil, path)
	if _, err := n.table.WriteAt(b, n.size); err != nil {
		return 0, err
	}
	at := uint32(n.size)
	n.size += int64(len(b))
	return at, nil
}

// sortTail makes a run of the tail, and one of the last two as long as the last has more than half the length of the one before.
func (n *notes) sortTail() {
	run := make([]place, 0, len(n.tail))
	for _, p := range n.tail {
		run = append(run, p)
	}
	slices.SortFunc(run, byKey)
	clear(n.tail)
	for len(n.runs) > 0 && len(run) > len(n.runs[len(n.runs)-1])/2 {
		run = merge(n.runs[len(n.runs)-1], run)
		n.runs = n.runs[:len(n.runs)-1]
	}
	n.runs = append(n.runs, run)
}

func merge(a, b []place) []place {
	m := make([]place, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if byKey(a[0], b[0]) <= 0 {
			m, a = append(m, a[0]), a[1:]
		} else {
			m, b = append(m, b[0]), b[1:]
		}
	}
	return append(append(m, a...), b...)
}

// find returns where chunks with a key were staged by this Receive.
func (n *notes) find(key uint64) (found []place) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p, ok := n.tail[key]; ok {
		found = append(found, p)
	}
	for _, run := range n.runs {
		i, _ := slices.BinarySearchFunc(run, key, func(p place, key uint64) int { return cmp.Compare(p.key, key) })
		for ; i < len(run) && run[i].key == key && len(found) < mostPlaces; i++ {
			found = append(found, run[i])
		}
	}
	return found
}

func (n *notes) path(off uint32) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return pathAt(n.table, 0, n.size, off)
}

// save writes the index of a staging directory: what was noted, and what an older index has of files that are still there, or elsewhere by
// now as gone says, and of chunks that were not noted anew. What is in it is not synced: it is a hint.
func (n *notes) save(path string, old *index, staging string, gone func(path string) (string, bool)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	kept, err := n.keep(old, staging, gone)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".chunks-")
	if err != nil {
		return err
	}
	err = errors.Join(n.write(f, both(n.all(), kept)), f.Close())
	if err == nil {
		err = vfs.Rename(vfs.OS, f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// all takes all places that were noted, sorted by file.
func (n *notes) all() (list []place) {
	n.sortTail()
	for _, run := range slices.Backward(n.runs) {
		list = append(list, run...)
	}
	n.runs = nil
	slices.SortStableFunc(list, byFile)
	// The same chunk of a file that changed while it was read.
	return slices.CompactFunc(list, func(a, b place) bool { return byFile(a, b) == 0 })
}

// write writes an index with the table that was noted.
func (n *notes) write(f *os.File, places iter.Seq[place]) error {
	if _, err := f.Seek(indexHead+n.size, io.SeekStart); err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 256<<10)
	var buf [placeSize]byte
	var count uint64
	for p := range places {
		count++
		if _, err := w.Write(p.append(buf[:0])); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if _, err := io.Copy(io.NewOffsetWriter(f, indexHead), io.NewSectionReader(n.table, 0, n.size)); err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint64([]byte(indexMagic), uint64(n.size))
	_, err := f.WriteAt(binary.BigEndian.AppendUint64(head, count), 0)
	return err
}

// mostPlacesKept bounds an index, in places: 1 GiB, of 4 TiB of content. What is beyond is not found by its content.
const mostPlacesKept = 64 << 20

// both are the places that were noted, which come sorted by file, and those of an older index, as far as they are of other chunks, sorted by key.
func both(noted []place, kept iter.Seq[place]) iter.Seq[place] {
	fresh := slices.Clone(noted)
	slices.SortFunc(fresh, byKey)
	return func(yield func(place) bool) {
		left := mostPlacesKept - len(fresh)
		for p := range kept {
			if _, again := slices.BinarySearchFunc(noted, p, byFile); again {
				continue
			}
			for ; len(fresh) > 0 && fresh[0].key < p.key; fresh = fresh[1:] {
				if !yield(fresh[0]) {
					return
				}
			}
			if left--; left < 0 {
				break
			}
			if !yield(p) {
				return
			}
		}
		for _, p := range fresh {
			if !yield(p) {
				return
			}
		}
	}
}

// moved is a path of an older index: where it was in its table, where it is in ours, and how many chunks its file has.
type moved struct {
	from, to uint32
	chunks   int64
}

// keep takes over the paths of an older index whose files are still there, and returns its places of these, sorted by key.
func (n *notes) keep(old *index, staging string, gone func(string) (string, bool)) (iter.Seq[place], error) {
	if old == nil {
		return func(func(place) bool) {}, nil
	}
	paths, err := n.move(old, staging, gone)
	if err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(io.NewSectionReader(old.f, indexHead+old.table, int64(old.places)*placeSize), 256<<10)
	return func(yield func(place) bool) {
		var b [placeSize]byte
		for range old.places {
			if _, err := io.ReadFull(r, b[:]); err != nil {
				return // what is left is not found any more
			}
			p := readPlace(b[:])
			i, ok := slices.BinarySearchFunc(paths, p.path, func(m moved, from uint32) int { return cmp.Compare(m.from, from) })
			if !ok || int64(p.number) >= paths[i].chunks {
				continue
			}
			p.path = paths[i].to
			if !yield(p) {
				return
			}
		}
	}, nil
}

// move puts the paths of an older index whose files are still there into the table, and returns them in the order of the older one.
func (n *notes) move(old *index, staging string, gone func(string) (string, bool)) (list []moved, err error) {
	noted := map[string]uint32{}
	err = eachPath(n.table, 0, n.size, func(at uint32, path string) error {
		noted[path] = at
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = eachPath(old.f, indexHead, old.table, func(at uint32, path string) (err error) {
		size := staged(staging, path)
		if elsewhere, ok := gone(path); ok && size == 0 {
			path, size = elsewhere, staged(staging, elsewhere)
		}
		if size == 0 {
			return nil
		}
		to, ok := noted[path]
		if !ok {
			to, err = n.appendPath(path)
		}
		list = append(list, moved{at, to, (size + chunkSize - 1) / chunkSize})
		return err
	})
	if errors.Is(err, errNoIndex) { // what is before the damage is kept
		err = nil
	}
	return list, err
}

// staged returns how long a file is, 0 if it is none. A link on its way leads to a wrong answer, and so to a place in which nothing is found.
func staged(dir, path string) int64 {
	fi, err := os.Lstat(filepath.Join(dir, path))
	if err != nil || !fi.Mode().IsRegular() {
		return 0
	}
	return fi.Size()
}

// eachPath calls fn with each path of a table.
func eachPath(f io.ReaderAt, begin, length int64, fn func(at uint32, path string) error) error {
	r := bufio.NewReaderSize(io.NewSectionReader(f, begin, length), 64<<10)
	for at := int64(0); at < length; {
		path, err := readPath(r)
		if err != nil {
			return errors.Join(errNoIndex, err)
		}
		if err := fn(uint32(at), path); err != nil {
			return err
		}
		at += int64(len(appendBytes(nil, path)))
	}
	return nil
}
