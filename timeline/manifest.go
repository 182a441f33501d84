package timeline

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"tidemark"
	"tidemark/capture"
	"tidemark/image"
	"tidemark/journal"
	"tidemark/object"
)

// What a timeline writes into the pool's bucket, so that everything that was
// captured can be brought back from the bucket alone (docs/format/timeline.md):
//
//	timelines/ID/descriptor-NNNNNNNN   what it is; the highest number counts
//	timelines/ID/image-PPPPPPPPPPPPPPPP  one point: the root of each disk
//	timelines/ID/journal/…              archived segments of its journal (docs/format/journal.md)
//
// and beside its journal, on the server's own disk, its state: what the head is
// built on. Each is JSON behind a line with its SHA-256, so that a flipped bit
// is found and named.

// descriptor says what a timeline is.
type descriptor struct {
	ID      string             `json:"id"`
	Name    string             `json:"name"`
	Parent  string             `json:"parent,omitempty"`
	Point   *tidemark.Position `json:"point,omitempty"`
	Created time.Time          `json:"created"`
	// About is the owner's: the application's type, source and options.
	About json.RawMessage `json:"about,omitempty"`
}

// manifest is one retained point.
type manifest struct {
	Timeline string            `json:"timeline"`
	Position tidemark.Position `json:"position"`
	Time     time.Time         `json:"time"`
	Mark     *Mark             `json:"bookmark,omitempty"`
	Disks    []diskImage       `json:"disks"`
}

// diskImage is a disk and an image of it.
type diskImage struct {
	Name string `json:"name"`
	measured
}

// measured is the stored form of an [image.Root], with what a full copy of the image would take.
type measured struct {
	Root  image.Name `json:"root"`
	Size  int64      `json:"size_bytes"`
	Chunk int        `json:"chunk_bytes"`
	// Held are the bytes that are not holes. It is 0 for an image that is not empty if that was not noted when it was made, nor
	// when that was which it was made of.
	Held int64 `json:"held_bytes,omitempty"`
}

func (r measured) root() image.Root {
	return image.Root{Name: r.Root, Size: r.Size, Chunk: r.Chunk}
}

// noted reports whether Held says what the image holds.
func (r measured) noted() bool { return r.Held != 0 || r.Root.IsZero() }

// Mark is what a bookmark says of its point.
type Mark = capture.Mark

const sealPrefix = "tidemark 1 sha256="

// seal encodes v behind a line with its hash.
func seal(v any) ([]byte, error) {
	body, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return append([]byte(sealPrefix+hex.EncodeToString(sum[:])+"\n"), body...), nil
}

// errDamaged: a file of ours does not hold what was written.
var errDamaged = errors.New("content does not match its checksum")

// unseal decodes what seal made.
func unseal(data []byte, v any) error {
	head, body, ok := bytes.Cut(data, []byte("\n"))
	sum := sha256.Sum256(body)
	if !ok || string(head) != sealPrefix+hex.EncodeToString(sum[:]) {
		return errDamaged
	}
	return json.Unmarshal(body, v)
}

func imageKey(id string, pos tidemark.Position) string {
	return fmt.Sprintf("timelines/%s/image-%016x", id, uint64(pos))
}

// putSealed stores v under key; that it is there already is no error: our keys say their content.
func putSealed(ctx context.Context, b object.Bucket, key string, v any) error {
	data, err := seal(v)
	if err != nil {
		return err
	}
	err = b.Put(ctx, key, bytes.NewReader(data), int64(len(data)))
	if err != nil && !errors.Is(err, object.ErrExists) {
		return fmt.Errorf("store %s: %w", key, err)
	}
	return nil
}

func getSealed(ctx context.Context, b object.Bucket, key string, v any) error {
	info, err := b.Stat(ctx, key)
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	data := make([]byte, info.Size)
	if err := b.ReadAt(ctx, key, data, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s: %w", key, err)
	}
	if err := unseal(data, v); err != nil {
		return tidemark.Errorf(tidemark.Corrupt, "the object %s of the pool is damaged: %w", key, err).
			WithHint("the point or timeline it describes cannot be used; others are not affected")
	}
	return nil
}

// listed is what the bucket holds of one timeline.
type listed struct {
	descriptors []int // numbers, ascending
	images      []tidemark.Position
	segments    []journal.Archived // of its journal
}

// listTimelines finds all timelines in the bucket.
func listTimelines(ctx context.Context, b object.Bucket) (map[string]*listed, error) {
	return listBelow(ctx, b, "timelines/")
}

func listBelow(ctx context.Context, b object.Bucket, prefix string) (map[string]*listed, error) {
	found := map[string]*listed{}
	err := b.List(ctx, prefix, func(o object.Info) error {
		parts := strings.Split(o.Key, "/")
		segment := len(parts) == 5 && parts[2] == "journal"
		if len(parts) != 3 && !segment {
			return nil
		}
		l := found[parts[1]]
		if l == nil {
			l = &listed{}
			found[parts[1]] = l
		}
		if segment {
			l.segments = append(l.segments, journal.Archived{Name: parts[3] + "/" + parts[4], Size: o.Size})
		} else if n, ok := strings.CutPrefix(parts[2], "descriptor-"); ok {
			if v, err := strconv.Atoi(n); err == nil {
				l.descriptors = append(l.descriptors, v)
			}
		} else if n, ok := strings.CutPrefix(parts[2], "image-"); ok {
			if v, err := strconv.ParseUint(n, 16, 64); err == nil {
				l.images = append(l.images, tidemark.Position(v))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the pool's timelines: %w", err)
	}
	return found, nil
}

func descriptorKey(id string, n int) string {
	return fmt.Sprintf("timelines/%s/descriptor-%08d", id, n)
}
