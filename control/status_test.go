package control

import (
	"log/slog"
	"strings"
	"testing"

	"tidemark"
	"tidemark/image"
	"tidemark/internal/vfs"
	"tidemark/object"
	"tidemark/timeline"
)

// The status says of which timeline folding is behind, and nothing when it has caught up.
func TestStatusOfWhatIsNotFolded(t *testing.T) {
	fs, quiet := vfs.NewMem(), slog.New(slog.DiscardHandler)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	bucket, err := object.OpenDir(fs, "/pool")
	must(err)
	defer bucket.Close()
	store, err := image.Open(t.Context(), image.Options{FS: fs, Dir: "/store", Bucket: bucket, CacheBytes: -1, Logger: quiet})
	must(err)
	defer store.Close()
	set, err := timeline.Open(t.Context(), store, timeline.Options{FS: fs, Dir: "/timelines", Bucket: bucket, Logger: quiet, SegmentSize: 64 << 10, Manual: true})
	must(err)
	defer set.Close()
	line, err := set.Create(t.Context(), "busy", []timeline.DiskSpec{{Name: "disk", Size: 8 << 20}}, nil)
	must(err)
	page := make([]byte, 4096)
	for i := range int64(16 * (timeline.KLimit + 2)) {
		page[0] = byte(i) | 1
		_, err := line.Disks()[0].WriteAt(page, i*4096)
		must(err)
	}
	s := tidemark.Status{Pool: new(tidemark.PoolStatus), K: new(int)}
	timelineStatus(line, &s)
	if *s.K <= timeline.KLimit || len(s.Warnings) != 1 || !strings.HasPrefix(s.Warnings[0], "busy is written faster than it is folded, with 640 KiB to go") {
		t.Errorf("K is %d, and the warnings are %q", *s.K, s.Warnings)
	}
	_, err = line.Bookmark(timeline.Mark{Name: "now"})
	must(err)
	must(line.Fold(t.Context()))
	s = tidemark.Status{Pool: new(tidemark.PoolStatus), K: new(int)}
	timelineStatus(line, &s)
	if *s.K > timeline.KLimit || len(s.Warnings) > 0 {
		t.Errorf("K is %d when all is folded, and the warnings are %q", *s.K, s.Warnings)
	}
}
