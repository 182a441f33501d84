package image

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// errBadBody: a body passed its checksum and yet does not decode. Only a bug or
// an attacker writes such a record.
var errBadBody = errors.New("body does not decode")

// Encoders and decoders of zstd take a megabyte or more each and are used for
// microseconds: they are pooled, single-threaded, and without zstd's own checksum.
var (
	encoders = sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(false), zstd.WithWindowSize(MaxChunk), zstd.WithZeroFrames(true), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(fmt.Sprintf("image: the fixed options of zstd are refused: %v", err))
		}
		return e
	}}
	decoders = sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.IgnoreChecksum(true), zstd.WithDecoderMaxMemory(4*MaxChunk), zstd.WithDecoderLowmem(true))
		if err != nil {
			panic(fmt.Sprintf("image: the fixed options of zstd are refused: %v", err))
		}
		return d
	}}
)

func zstdEncode(dst, src []byte) []byte {
	e := encoders.Get().(*zstd.Encoder)
	defer encoders.Put(e)
	return e.EncodeAll(src, dst)
}

// zstdDecode decodes src into exactly all of dst.
func zstdDecode(dst, src []byte) error {
	d := decoders.Get().(*zstd.Decoder)
	defer decoders.Put(d)
	out, err := d.DecodeAll(src, dst[:0:len(dst)])
	if err != nil || len(out) != len(dst) || len(dst) > 0 && &out[0] != &dst[0] {
		return fmt.Errorf("%w: zstd: %d of %d bytes: %v", errBadBody, len(out), len(dst), err)
	}
	return nil
}

// encodeFull encodes content by itself, in dst. fast prefers s2 to zstd: three
// times faster both ways, a third larger.
func encodeFull(dst, content []byte, fast bool) (codec, []byte) {
	limit := len(content) - len(content)/16 // gain less than that and reads pay for nothing
	if looksRandom(content) {
		return codecRaw, append(dst[:0], content...)
	}
	var c codec
	if fast {
		if need := s2.MaxEncodedLen(len(content)); cap(dst) < need {
			dst = make([]byte, need)
		}
		c, dst = codecS2, s2.Encode(dst[:cap(dst)], content)
	} else {
		c, dst = codecZstd, zstdEncode(dst[:0], content)
	}
	if len(dst) >= limit {
		return codecRaw, append(dst[:0], content...)
	}
	return c, dst
}

// sampleStep spreads the sample of looksRandom over the content.
const sampleStep = 16

// looksRandom guesses from half of the bytes whether compression is in vain:
// the order-0 entropy of the sample is as near 8 bits as that of random bytes.
func looksRandom(p []byte) bool {
	return len(p) >= MinChunk && !collides(p) && nearRandom(p)
}

func nearRandom(p []byte) bool {
	var count [256]int
	n := 0
	for i := 0; i+sampleStep*8 <= len(p); i += sampleStep * 8 {
		for _, b := range p[i : i+64] {
			count[b]++
			n++
		}
	}
	var h float64
	for _, c := range count {
		if c > 0 {
			f := float64(c) / float64(n)
			h -= f * math.Log2(f)
		}
	}
	// A random sample of n bytes falls short of 8 bits by about 255/(2n ln 2).
	return h > 8-1.6*255/(2*float64(n)*math.Ln2)
}

// collides reports, from a sixteenth of the bytes, that two of them are equal more than twice as often as
// random ones: their collision entropy is below 7 bits, and with it what looksRandom would find out for
// eight times the cost. Nearly all chunks of files and databases are such.
func collides(p []byte) bool {
	var count [256]int32
	n := 0
	for i := 0; i+8 <= len(p); i += sampleStep * 8 {
		for _, b := range p[i : i+8] {
			count[b]++
		}
		n += 8
	}
	pairs := 0
	for _, c := range count {
		pairs += int(c) * int(c-1)
	}
	return pairs > 2*n*(n-1)/256
}

// decodeFull decodes the body of any record but a patch into all of dst.
func decodeFull(c codec, dst, body []byte) error {
	switch c {
	case codecRaw:
		if len(body) != len(dst) {
			return fmt.Errorf("%w: raw of %d bytes, want %d", errBadBody, len(body), len(dst))
		}
		copy(dst, body)
		return nil
	case codecS2:
		if n, err := s2.DecodedLen(body); err != nil || n != len(dst) {
			return fmt.Errorf("%w: s2 of %d bytes, want %d: %v", errBadBody, n, len(dst), err)
		}
		if _, err := s2.Decode(dst, body); err != nil {
			return fmt.Errorf("%w: %w", errBadBody, err)
		}
		return nil
	case codecZstd:
		return zstdDecode(dst, body)
	}
	return fmt.Errorf("%w: codec %d", errBadBody, c)
}
