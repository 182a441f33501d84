package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// pattern is a kind of I/O that fio drives.
type pattern struct {
	rw    string // randread, randwrite, read, write
	bs    string
	depth int
	// Either for a time, or for a number of bytes.
	span  time.Duration
	bytes int64
	seed  int
}

func (p pattern) String() string { return fmt.Sprintf("%s %s QD%d", p.rw, p.bs, p.depth) }

// fioOutput is what we read of fio's JSON.
type fioOutput struct {
	Jobs []struct{ Read, Write fioSide }
}

type fioSide struct {
	IOPS     float64 `json:"iops"`
	BW       float64 `json:"bw_bytes"`
	TotalIOs float64 `json:"total_ios"`
	Clat     struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

// drive runs fio against something and returns the figures by unit.
func drive(ctx context.Context, p pattern, size int64, target ...string) (map[string]float64, error) {
	args := []string{"--name=j", "--output-format=json", "--rw=" + p.rw, "--bs=" + p.bs, "--group_reporting",
		fmt.Sprintf("--iodepth=%d", p.depth), fmt.Sprintf("--size=%d", size), "--refill_buffers=0"}
	if p.bytes > 0 {
		args = append(args, fmt.Sprintf("--io_size=%d", p.bytes))
	} else {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", p.span.Milliseconds()), "--norandommap")
	}
	if p.seed != 0 {
		args = append(args, fmt.Sprintf("--randseed=%d", p.seed))
	}
	cmd := exec.CommandContext(ctx, "fio", append(args, target...)...)
	var text, said strings.Builder
	cmd.Stdout, cmd.Stderr = &text, &said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("fio %s on %s: %w: %s", p, target, err, said.String()+text.String())
	}
	_, body, _ := strings.Cut(text.String(), "{")
	var out fioOutput
	if err := json.Unmarshal([]byte("{"+body), &out); err != nil || len(out.Jobs) == 0 {
		return nil, fmt.Errorf("fio's output: %v: %s", err, text.String())
	}
	side := out.Jobs[0].Read
	if strings.Contains(p.rw, "write") {
		side = out.Jobs[0].Write
	}
	return map[string]float64{"iops": side.IOPS, "MB/s": side.BW / 1e6, "ios": side.TotalIOs,
		"p50_us": side.Clat.Percentile["50.000000"] / 1e3, "p99_us": side.Clat.Percentile["99.000000"] / 1e3}, nil
}

// driveNBD runs fio against a server's export and adds the server's CPU time
// per request in µs.
func driveNBD(ctx context.Context, s *server, export string, p pattern, size int64) (map[string]float64, error) {
	before := s.cpu()
	var v map[string]float64
	err := s.profiled(p.String(), func() (err error) {
		v, err = drive(ctx, p, size, "--ioengine=nbd", "--uri="+s.uri(export))
		return err
	})
	if err != nil {
		return nil, err
	}
	used := s.cpu() - before
	v["cpu_us"] = float64(used.Microseconds()) / max(1, v["ios"])
	if strings.Contains(p.rw, "write") {
		s.settle()
		v["later_us"] = float64((s.cpu() - before - used).Microseconds()) / max(1, v["ios"])
	}
	return v, nil
}

// settle waits until a server has done nothing for two seconds: what one sample leaves to
// be done later must not slow the next. A minute is enough for everybody.
func (s *server) settle() {
	quiet := 0
	for range 300 {
		before := s.cpu()
		time.Sleep(200 * time.Millisecond)
		if quiet++; s.cpu()-before > 10*time.Millisecond {
			quiet = 0
		}
		if quiet == 10 {
			return
		}
	}
}
