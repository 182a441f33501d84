package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tidemark"
)

// Action is what applying documents does to one thing.
type Action string

// The actions.
const (
	ActionMake   Action = "make"   // it is not there
	ActionChange Action = "change" // it is, and differs
	ActionLeave  Action = "leave"  // it is as it is wanted, or the documents do not speak of it
)

// Change is what applying documents does to one thing.
type Change struct {
	Action Action        `json:"action"`
	Kind   DocumentKind  `json:"kind"`
	Name   string        `json:"name"`
	Fields []FieldChange `json:"fields,omitempty"` // of make and change, by name
	// Wanted says of what is left whether the documents speak of it.
	Wanted bool `json:"wanted"`
}

// FieldChange is one field that is set, changed or taken away. Fields within fields are
// named with dots. Empty: not there.
type FieldChange struct {
	Field string `json:"field"`
	From  string `json:"from,omitempty"`
	To    string `json:"to,omitempty"`
}

// String is the change in one line, as a dry run prints it.
func (c Change) String() string {
	s := fmt.Sprintf("%s %s %s", c.Action, c.Kind, c.Name)
	if c.Action == ActionLeave {
		return s
	}
	var parts []string
	for _, f := range c.Fields {
		switch {
		case f.From == "":
			parts = append(parts, f.Field+": "+f.To)
		case f.To == "":
			parts = append(parts, f.Field+": "+f.From+" → (none)")
		default:
			parts = append(parts, f.Field+": "+f.From+" → "+f.To)
		}
	}
	return s + ": " + strings.Join(parts, ", ")
}

// Difference lists what has to be done that a server that has have gets what is wanted:
// hosts, templates and profiles before applications, these before groups, each kind by name. What is
// there and no document names is left alone; of what one names, it is the whole: a field that it does not have is taken away.
func Difference(have, want Set) ([]Change, error) {
	old := map[string]object{}
	for _, n := range have.all() {
		old[string(n.kind)+" "+n.name] = n.object
	}
	var changes []Change
	rest := have.all()
	for _, n := range want.all() {
		rest = slices.DeleteFunc(rest, func(o named) bool { return o.kind == n.kind && o.name == n.name })
		change, err := compare(n, old[string(n.kind)+" "+n.name])
		if err != nil {
			return nil, err
		}
		changes = append(changes, change)
	}
	for _, n := range rest {
		changes = append(changes, Change{Action: ActionLeave, Kind: n.kind, Name: n.name})
	}
	slices.SortStableFunc(changes, func(a, b Change) int {
		return compareNamed(named{kind: a.Kind, name: a.Name}, named{kind: b.Kind, name: b.Name})
	})
	return changes, nil
}

func compare(n named, old object) (Change, error) {
	c := Change{Action: ActionMake, Kind: n.kind, Name: n.name, Wanted: true}
	var older any // nil, and not of a type
	if old != nil {
		c.Action, older = ActionChange, old
	}
	var err error
	if c.Fields, err = Differing(older, n.object); err != nil {
		return Change{}, err
	}
	c.Fields = slices.DeleteFunc(c.Fields, func(f FieldChange) bool { return f.Field == "name" })
	if old != nil && len(c.Fields) == 0 {
		c.Action = ActionLeave
	}
	return c, nil
}

// Differing lists the fields in which two things of a type differ, by name; older is nil if there was nothing. Empty fields are as good as none.
func Differing(older, newer any) (list []FieldChange, err error) {
	from, to := map[string]string{}, map[string]string{}
	if older != nil {
		if err := flatten(older, from); err != nil {
			return nil, err
		}
	}
	if err := flatten(newer, to); err != nil {
		return nil, err
	}
	all := maps.Clone(from)
	maps.Copy(all, to)
	for _, field := range slices.Sorted(maps.Keys(all)) {
		if from[field] != to[field] {
			list = append(list, FieldChange{field, from[field], to[field]})
		}
	}
	return list, nil
}

// flatten writes each single value of an object into fields, under its path.
func flatten(o any, fields map[string]string) error {
	data, err := json.Marshal(o)
	if err != nil {
		return tidemark.Errorf(tidemark.Internal, "cannot compare: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v map[string]any
	if err := dec.Decode(&v); err != nil {
		return tidemark.Errorf(tidemark.Internal, "cannot compare: %w", err)
	}
	flattenValue("", v, fields)
	return nil
}

func flattenValue(path string, v any, fields map[string]string) {
	switch v := v.(type) {
	case map[string]any:
		for key, sub := range v {
			if path != "" {
				key = path + "." + key
			}
			flattenValue(key, sub, fields)
		}
	case []any:
		var list []string
		for _, e := range v {
			list = append(list, fmt.Sprint(e))
		}
		if len(list) > 0 {
			fields[path] = "[" + strings.Join(list, ", ") + "]"
		}
	case nil:
	default:
		if s := fmt.Sprint(v); s != "" {
			fields[path] = s
		}
	}
}

// Forgotten says how many points of an application its template lets go at once.
type Forgotten struct {
	Application string `json:"application"`
	Template    string `json:"template" doc:"The template that it has then."`
	Points      int    `json:"points" doc:"How many of its points are forgotten now; more may be as they grow old."`
}

// String is what is forgotten in one line, as a dry run prints it.
func (f Forgotten) String() string {
	if f.Points == 1 {
		return "1 point of " + f.Application + " is forgotten"
	}
	return fmt.Sprintf("%d points of %s are forgotten", f.Points, f.Application)
}

// Applied says what applying documents did, or would do.
type Applied struct {
	Changes []Change       `json:"changes" doc:"What was changed, or is as it is wanted."`
	DryRun  bool           `json:"dry_run,omitempty" doc:"Nothing was changed."`
	Notes   []string       `json:"notes,omitempty" doc:"What a template or profile says that is not acted on."`
	Jobs    []tidemark.Job `json:"jobs,omitempty" doc:"The jobs that protect what was not protected."`
	// Forgotten are the applications whose template is another one, or says something else, and lets points go.
	Forgotten []Forgotten `json:"forgotten,omitempty" doc:"How many points are forgotten at once for what was changed, by application."`
	// UnderWay are jobs that were asked for before, and make what is wanted.
	UnderWay []tidemark.Job `json:"under_way,omitempty" doc:"The jobs that were asked for before, and are protecting what is wanted."`
}
