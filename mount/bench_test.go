package mount

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkAttached runs fio on an attached device, over a server that costs
// little (nbdkit's memory plugin). The result is in requests per second; see
// DESIGN.md, "Measured", for the peers.
func BenchmarkAttached(b *testing.B) {
	for _, tool := range []string{"nbdkit", "fio"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skip(err)
		}
	}
	sock := filepath.Join(b.TempDir(), "s")
	cmd := exec.Command("nbdkit", "-f", "-U", sock, "memory", "1G")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	time.Sleep(200 * time.Millisecond)
	a, err := Attach(b.Context(), Config{Name: "b", StateDir: b.TempDir(), Socket: sock})
	if err != nil {
		b.Fatal(err)
	}
	defer a.Detach(b.Context(), true)
	fio(b, a.Device(), "write", "1M", "4")
	for _, c := range [][3]string{
		{"randread", "4k", "1"}, {"randread", "4k", "16"}, {"randread", "4k", "64"},
		{"randwrite", "4k", "1"}, {"randwrite", "4k", "64"}, {"read", "1M", "4"}, {"write", "1M", "4"},
	} {
		b.Run(c[0]+"/"+c[1]+"/"+c[2], func(b *testing.B) {
			for b.Loop() {
				b.ReportMetric(fio(b, a.Device(), c[0], c[1], c[2]), "IOPS")
			}
		})
	}
}

// fio runs one job for two seconds and returns its requests per second.
func fio(b *testing.B, dev, rw, bs, depth string) float64 {
	b.Helper()
	out, err := exec.Command("fio", "--name=j", "--filename="+dev, "--rw="+rw, "--bs="+bs, "--iodepth="+depth,
		"--ioengine=libaio", "--direct=1", "--runtime=2", "--time_based", "--size=1G", "--norandommap", "--output-format=json").Output()
	if err != nil {
		b.Fatal(err)
	}
	return fioIOPS(b, out)
}

func fioIOPS(b *testing.B, out []byte) float64 {
	var r struct {
		Jobs []struct{ Read, Write struct{ IOPS float64 } }
	}
	if err := json.Unmarshal(out, &r); err != nil || len(r.Jobs) != 1 {
		b.Fatalf("fio said %s: %v", out, err)
	}
	return r.Jobs[0].Read.IOPS + r.Jobs[0].Write.IOPS
}
