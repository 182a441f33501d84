package residue

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchDisk is 64 MiB, as of a database: rows with names, numbers and zeros between; a quarter is noise, a quarter is zeros.
func benchDisk(rng *rand.Rand) memory {
	disk := make(memory, 64<<20)
	for off := 0; off < len(disk); off += 8192 {
		page := disk[off : off+8192]
		switch rng.IntN(4) {
		case 0:
			for i := range page {
				page[i] = byte(rng.Uint32())
			}
		case 1, 2:
			for at := 200; at+120 < len(page); at += 120 {
				copy(page[at:], fmt.Sprintf("\x01\x02\x00\x00\x08\x18\x00\x00customer %d\x1bFirstname Lastname %d\x15%016d", at, rng.IntN(1e6), rng.Int64N(1e16)))
			}
		}
	}
	return disk
}

// processorTime is what the process used so far: on a busy machine it says more than the clock.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchValues(rng *rand.Rand, n int) (values []string) {
	for range n {
		values = append(values, fmt.Sprintf("Person%d Familyname%d", rng.IntN(1e6), rng.IntN(1e6)))
	}
	return values
}

func BenchmarkScan(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	disk := benchDisk(rng)
	for _, n := range []int{100, 100_000, 1_000_000} {
		for _, ways := range []Way{Folded, Folded | Digits | Binary} {
			set := prints(b, ways, append(benchValues(rng, n), "4111111111111119")...)
			b.Run(fmt.Sprintf("values=%d/ways=%d", n, ways), func(b *testing.B) {
				b.SetBytes(disk.Size())
				before, n := processorTime(b), 0
				for ; b.Loop(); n++ {
					if _, err := Scan(context.Background(), disk, set, Options{Workers: 1}, func(Finding) bool { return true }); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(disk.Size())*float64(n)/1e6/(processorTime(b)-before).Seconds(), "MB/cpu-s")
			})
		}
	}
}

// BenchmarkNaive looks for each of 100 values in each encoding, exactly as it is, by bytes.Contains.
func BenchmarkNaive(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	disk := benchDisk(rng)
	var patterns [][]byte
	for _, v := range benchValues(rng, 100) {
		for _, p := range textForms([]byte(v), AsIs) {
			patterns = append(patterns, p.bytes)
		}
	}
	b.SetBytes(disk.Size())
	for b.Loop() {
		for _, p := range patterns {
			if bytes.Contains(disk, p) {
				b.Fatal("found")
			}
		}
	}
}
