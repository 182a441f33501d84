package delta

import (
	"encoding/binary"
	"errors"
	"io"
	"os"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"tidemark/block"
)

// printSize is the length of a fingerprint: 127 bits of XXH3 with a seed that the receiver draws for each capture. Two different
// blocks have the same by an accident of 2^-127; the sender could forge no other block than one of its own tree.
const printSize = 16

// fine is the grain at which a block is compared that differs, in bytes: of a page of a database in which a row has changed, most is as it was.
const fine = 256

// finePrints is the length of the fingerprints of a block's pieces.
const finePrints = block.BlockSize / fine * printSize

// chunkPrints is the length of the fingerprints of a chunk's blocks.
const chunkPrints = chunkSize / block.BlockSize * printSize

var zeros [block.BlockSize]byte

// printsOf returns the fingerprints of what a file has of the n bytes at off, one for each block. A block of zeros, and one behind the end, has
// that of zeros; those at the end may be left out. buf has room for the n bytes.
func printsOf(f *os.File, off, n int64, seed uint64, buf []byte) ([]byte, error) {
	k, err := f.ReadAt(buf[:n], off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	prints := make([]byte, 0, (k+block.BlockSize-1)/block.BlockSize*printSize)
	return appendPrints(prints, buf[:k], block.BlockSize, seed), nil
}

// appendPrints appends the fingerprints of pieces of a grain.
func appendPrints(to, b []byte, grain int, seed uint64) []byte {
	for ; len(b) > 0; b = b[min(len(b), grain):] {
		to = appendPrint(to, b[:min(len(b), grain)], seed)
	}
	return to
}

// appendFine appends, for each block of a list of numbers as in msgDiffer, its number and the fingerprints of its pieces, as in msgFiner.
func appendFine(to []byte, f *os.File, list []byte, seed uint64) ([]byte, int, error) {
	var b [block.BlockSize]byte
	n := 0
	p := parser{b: list}
	for len(p.b) > 0 {
		number := p.length()
		if p.err != nil || number > 1<<50 || n >= part/block.BlockSize {
			return nil, 0, malformed("a list of blocks")
		}
		clear(b[:])
		if _, err := f.ReadAt(b[:], number*block.BlockSize); err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, err
		}
		to = appendPrints(binary.AppendUvarint(to, uint64(number)), b[:], fine, seed)
		n++
	}
	return to, n, nil
}

func isZero(b []byte) bool {
	for ; len(b) > len(zeros); b = b[len(zeros):] {
		if [block.BlockSize]byte(b) != zeros {
			return false
		}
	}
	return string(b) == string(zeros[:len(b)])
}

// appendPrint appends the fingerprint of a block: 16 zeros for one that is nothing but zeros, whatever its length.
func appendPrint(to, b []byte, seed uint64) []byte {
	if isZero(b) {
		return append(to, zeros[:printSize]...)
	}
	h := xxh3.Hash128Seed(b, seed)
	h.Lo |= 1 // never that of zeros
	v := h.Bytes()
	return append(to, v[:]...)
}

// hole reports whether a file has nothing at all in the n bytes at off, by what its file system says.
func hole(f *os.File, off, n int64) bool {
	data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	return errors.Is(err, unix.ENXIO) || err == nil && data >= off+n
}
