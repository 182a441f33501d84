package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Result is what one benchmark found.
type Result struct {
	Name  string
	About string
	When  time.Time
	Quick bool
	// Rounds is how often each figure was taken.
	Rounds int
	// LoadBefore and LoadAfter are the first figure of /proc/loadavg.
	LoadBefore, LoadAfter string
	Rows                  []Row
	Notes                 []string
	Samples               []Sample
}

// Row is one figure with what it has to reach.
type Row struct {
	What  string
	Value float64
	Unit  string // "x" for ratios
	Must  Bound
	Aim   Bound
	How   string // the figures behind it
}

// Bound is a limit; the zero Bound is none.
type Bound struct {
	Op    string // ">=" or "<="
	Value float64
}

func atLeast(v float64) Bound { return Bound{">=", v} }
func atMost(v float64) Bound  { return Bound{"<=", v} }

func (b Bound) holds(v float64) bool {
	switch b.Op {
	case ">=":
		return v >= b.Value
	case "<=":
		return v <= b.Value
	}
	return true
}

func (b Bound) String() string {
	if b.Op == "" {
		return ""
	}
	return map[string]string{">=": "≥ ", "<=": "≤ "}[b.Op] + number(b.Value)
}

// verdict says in a word whether the row reaches what it must.
func (r Row) verdict() string {
	switch {
	case r.Must.Op == "" && r.Aim.Op == "":
		return ""
	case !r.Must.holds(r.Value):
		return "**short**"
	case r.Aim.Op != "" && r.Aim.holds(r.Value):
		return "aim"
	case r.Must.Op == "":
		return "below aim"
	}
	return "must"
}

// Sample is one measurement of one side.
type Sample struct {
	Side  string // "tidemark", "qemu-nbd qcow2", …
	What  string // "randread 4k QD16", …
	Round int
	Value map[string]float64 // by unit: iops, MB/s, cpu_us, …
}

func newResult(name, about string, e *env) *Result {
	return &Result{Name: name, About: about, When: time.Now().UTC(), Quick: e.quick, Rounds: e.rounds, LoadBefore: load()}
}

func (r *Result) finish() { r.LoadAfter = load() }

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	return strings.Fields(string(b))[0]
}

func (r *Result) add(s Sample) { r.Samples = append(r.Samples, s) }

func (r *Result) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// row appends a figure.
func (r *Result) row(what string, value float64, unit string, must, aim Bound, how string, args ...any) {
	r.Rows = append(r.Rows, Row{What: what, Value: value, Unit: unit, Must: must, Aim: aim, How: fmt.Sprintf(how, args...)})
}

// median returns the median of a unit over a side's samples of one kind.
func (r *Result) median(side, what, unit string) float64 {
	var v []float64
	for _, s := range r.Samples {
		if x, ok := s.Value[unit]; ok && s.Side == side && s.What == what {
			v = append(v, x)
		}
	}
	return median(v)
}

// ratio returns the median over the rounds of our figure over theirs within a
// round: what both suffered in the same minute drops out.
func (r *Result) ratio(ours, theirs, what, unit string) float64 {
	a, b := map[int]float64{}, map[int]float64{}
	for _, s := range r.Samples {
		if s.What == what && s.Side == ours {
			a[s.Round] = s.Value[unit]
		}
		if s.What == what && s.Side == theirs {
			b[s.Round] = s.Value[unit]
		}
	}
	var v []float64
	for round, x := range a {
		if y := b[round]; y > 0 {
			v = append(v, x/y)
		}
	}
	return median(v)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// number formats a figure with three digits that count.
func number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 99.95 || v <= -99.95:
		return fmt.Sprintf("%.0f", v)
	case v >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.0995:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// thousands formats a rate.
func thousands(v float64) string { return number(v/1000) + " k" }

func (r *Result) markdown() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "| figure | value | must | aim | reached | measured |\n|---|---|---|---|---|---|\n")
	for _, w := range r.Rows {
		unit := w.Unit
		if unit != "" {
			unit = " " + unit
		}
		fmt.Fprintf(&b, "| %s | %s%s | %s | %s | %s | %s |\n", w.What, number(w.Value), unit, w.Must, w.Aim, w.verdict(), w.How)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\n%s\n", n)
	}
	return b.String()
}

func (r *Result) save(dir string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, r.Name+".json"), b, 0o644)
}

// The report's place in a file that also holds other text.
const (
	reportBegin = "<!-- figures: written by go run ./bench -report -->"
	reportEnd   = "<!-- end of figures -->"
)

// writeReport makes the report of all results in dir. In a file that has the two
// marks, what stands between them is replaced.
func writeReport(dir, file string) error {
	var b bytes.Buffer
	for _, bm := range table {
		r, err := loadResult(filepath.Join(dir, bm.name+".json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		size := ""
		if r.Quick {
			size = ", quick"
		}
		fmt.Fprintf(&b, "\n### %s: %s\n\n%s, %d rounds%s, load %s before and %s after.\n\n%s",
			r.Name, r.About, r.When.Format("2006-01-02 15:04 UTC"), r.Rounds, size, r.LoadBefore, r.LoadAfter, r.markdown())
	}
	if file == "-" {
		_, err := os.Stdout.Write(b.Bytes())
		return err
	}
	text := b.String()
	if old, err := os.ReadFile(file); err == nil {
		before, rest, ok := strings.Cut(string(old), reportBegin)
		_, after, ok2 := strings.Cut(rest, reportEnd)
		if ok && ok2 {
			text = before + reportBegin + "\n" + text + "\n" + reportEnd + after
		}
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

func loadResult(file string) (*Result, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := new(Result)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}
