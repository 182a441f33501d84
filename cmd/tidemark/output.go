package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"tidemark"
	"tidemark/client"
)

const defaultData = "/var/lib/tidemark"

var flags struct {
	socket                string
	server, ca, tokenFile string // of a server on the network
	json                  bool
	queue                 bool // jobs wait, if they cannot begin
}

// server returns a client of the server that was named.
func server() *client.Client {
	c := connect()
	c.Queue = flags.queue
	return c
}

func connect() *client.Client {
	p, err := place()
	if err != nil {
		return client.Failing(err)
	}
	if p.URL != "" {
		c, err := client.NewRemote(p)
		if err != nil {
			return client.Failing(usage(err))
		}
		return c
	}
	return client.New(cmp.Or(flags.socket, os.Getenv("TIDEMARK_SOCKET"), filepath.Join(defaultData, socketName)))
}

// show prints facts: as JSON where that was asked for, else for people.
func show(facts any, people func()) error {
	if !flags.json {
		people()
		return nil
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(facts)
}

// lineWidth is the width that tables keep to, in columns.
const lineWidth = 80

// table prints rows under a head, in columns.
func table(head string, rows [][]string) { fmt.Print(columns(head, rows)) }

// columns are rows under a head. If they do not fit, those that say nothing of any row are left out; what does not fit then
// follows on a line of its own: columns, or what is in the last one of a row.
func columns(head string, rows [][]string) string {
	rows = append([][]string{strings.Fields(head)}, rows...)
	wide := widths(rows)
	if fixed := wide[:len(wide)-1]; sum(fixed)+2*len(fixed) > lineWidth {
		rows = saying(rows)
		wide = widths(rows)
	}
	var text strings.Builder
	for _, r := range rows {
		line := ""
		for i, cell := range r {
			w := wide[i]
			if i == len(r)-1 {
				w = utf8.RuneCountInString(cell)
			}
			if w > 0 && strings.TrimSpace(line) != "" && utf8.RuneCountInString(line)+w > lineWidth {
				text.WriteString(strings.TrimRight(line, " ") + "\n")
				line = "  "
			}
			line += fmt.Sprintf("%-*s  ", w, cell)
		}
		text.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return text.String()
}

// widths are those of the columns of rows.
func widths(rows [][]string) []int {
	wide := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, cell := range r {
			wide[i] = max(wide[i], utf8.RuneCountInString(cell))
		}
	}
	return wide
}

func sum(list []int) (n int) {
	for _, v := range list {
		n += v
	}
	return n
}

// saying leaves of rows under a head the columns that say something of one of them.
func saying(rows [][]string) [][]string {
	left := make([][]string, len(rows))
	for i := range rows[0] {
		said := slices.ContainsFunc(rows[1:], func(r []string) bool { return r[i] != "" && r[i] != "-" })
		for j := range rows {
			if said {
				left[j] = append(left[j], rows[j][i])
			}
		}
	}
	return left
}

// tell prints what was asked for.
func tell[T any](people func(T)) func(T, error) error {
	return func(res T, err error) error {
		if err != nil {
			return err
		}
		return show(res, func() { people(res) })
	}
}

// printList prints a list that was asked for.
func printList[T any](seq iter.Seq2[T, error], people func([]T)) error {
	return tell(people)(client.Collect(seq))
}

// work shows the progress of a job that was asked for, and prints its result.
func work[T any](cmd *cobra.Command, people func(T)) func(tidemark.Job, error) error {
	return func(j tidemark.Job, err error) error {
		return tell(people)(result[T](cmd, j, err))
	}
}

// result shows the progress of a job that was asked for, and returns its result.
func result[T any](cmd *cobra.Command, j tidemark.Job, err error) (T, error) {
	bar := newProgress(cmd.Name())
	defer bar.finish()
	return client.Result[T](cmd.Context(), server(), j, err, bar.report)
}

// done prints of something with a name that it was done.
func done(key, name, said string) error {
	return show(map[string]string{key: name}, func() { fmt.Println(name, said) })
}

// atTerminal reports whether somebody can be asked.
func atTerminal() bool {
	return term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stderr.Fd()))
}

// confirm asks whether to go on. It is an error if that is not to be.
func confirm(warning string) error {
	fmt.Fprintf(os.Stderr, "%s Go on? [y/N] ", warning)
	answer, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}

// progress shows how far a job is, on a terminal.
type progress struct {
	what string
	bar  *progressbar.ProgressBar
	unit string
}

func newProgress(what string) *progress {
	p := &progress{what: what}
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return nil
	}
	return p
}

func (p *progress) report(j tidemark.Job) {
	if p == nil || j.State != tidemark.JobRunning || j.Progress.Done == 0 && j.Progress.Total == 0 {
		return
	}
	if p.bar == nil {
		total := j.Progress.Total
		if total == 0 {
			total = -1
		}
		p.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription(p.what),
			progressbar.OptionShowBytes(j.Progress.Unit == "bytes"), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
	}
	if j.Progress.Total > 0 && p.bar.GetMax64() != j.Progress.Total {
		p.bar.ChangeMax64(j.Progress.Total)
	}
	p.bar.Describe(p.what + " " + j.Step)
	_ = p.bar.Set64(j.Progress.Done) // a bar that cannot be drawn stops nothing
}

func (p *progress) finish() {
	if p != nil && p.bar != nil {
		_ = p.bar.Clear()
	}
}

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func seconds(s float64) string {
	if s < 1 {
		return fmt.Sprintf("%.0f ms", s*1000)
	}
	return fmt.Sprintf("%.1f s", s)
}

func size(n int64) string { return tidemark.FormatSize(n) }

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// completion completes an argument of a command.
type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// named completes a command's first argument with names that the server knows.
func named[T any](list func(*client.Client, context.Context) iter.Seq2[T, error], nameOf func(T) string) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		var names []string
		for v, err := range list(server(), cmd.Context()) {
			if err != nil {
				break
			}
			names = append(names, nameOf(v))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// What a first argument is completed with.
var (
	appNames    = named((*client.Client).Applications, func(a tidemark.Application) string { return a.Name })
	cloneNames  = named((*client.Client).Clones, func(k tidemark.Clone) string { return k.Name })
	volumeNames = named((*client.Client).Volumes, func(v tidemark.VolumeInfo) string { return v.Name })
	mountNames  = named((*client.Client).Mounts, func(m tidemark.Mount) string { return m.Name })
	exportNames = named((*client.Client).Exports, func(e tidemark.Export) string { return e.Name })
	hostNames   = named((*client.Client).Hosts, func(h tidemark.Host) string { return h.Name })
)

// anyName completes with all applications and clones.
func anyName(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
	a, d := appNames(cmd, args, part)
	c, _ := cloneNames(cmd, args, part)
	return append(a, c...), d
}
