package workflow

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"tidemark/policy"
)

// Difference lists what of a workflow is other than in an older version of it: by field, and each parameter and step that differs, as a
// plan tells it. Nothing is told that is hidden from who may not change the workflow. Two that only are written differently have none.
func Difference(older, newer Workflow) ([]policy.FieldChange, error) {
	list, err := policy.Differing(older.head(), newer.head())
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i].From, list[i].To = oneLine(list[i].From), oneLine(list[i].To)
	}
	list = append(list, differing(older.parameters(), newer.parameters())...)
	list = append(list, differing(stepsOf("steps", older.Steps, 0), stepsOf("steps", newer.Steps, 0))...)
	return append(list, differing(stepsOf("on_failure", older.OnFailure, 0), stepsOf("on_failure", newer.OnFailure, 0))...), nil
}

// head is the workflow without its lists.
func (w Workflow) head() any {
	w.Parameters, w.Steps, w.OnFailure = nil, nil, nil
	return w
}

// entry is a parameter or step: where it stands, how it is told, and all that it says.
type entry struct{ path, told, whole string }

func (w Workflow) parameters() (all []entry) {
	for _, p := range w.Parameters {
		told := string(cmp.Or(p.Type, TypeText))
		if p.Default != nil && !w.Posted(p.Name) {
			told += " " + cmp.Or(strings.Join(p.Default.List, ","), p.Default.Text)
		}
		all = append(all, entry{"parameters." + p.Name, oneLine(told), whole(0, p)})
	}
	return all
}

// stepsOf lists steps that are so deep in groups: each group, and then those in it.
func stepsOf(path string, list []Item, depth int) (all []entry) {
	for i, x := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		bare := x
		bare.Parallel, bare.Steps = nil, nil
		told := "parallel"
		switch {
		case x.ForEach != nil && x.ForEach.List != nil:
			told = "for each of " + strings.Join(x.ForEach.List, ", ")
		case x.ForEach != nil:
			told = "for each of " + x.ForEach.Text
		}
		for _, v := range x.verbs() {
			told = v.body.String()
		}
		all = append(all, entry{at, oneLine(told), whole(depth, bare)})
		all = append(all, stepsOf(at+".parallel", x.Parallel, depth+1)...)
		all = append(all, stepsOf(at+".steps", x.Steps, depth+1)...)
	}
	return all
}

// whole is all that something says that is so deep in others.
func whole(depth int, v any) string {
	data, _ := json.Marshal(v) // there is nothing in a workflow that cannot be written
	return fmt.Sprint(depth, " ", string(data))
}

// oneLine is a text as it is told: one line, and not a long one.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 80 {
		s = string(r[:79]) + "…"
	}
	return s
}

// differing says what of a list differs from an older one, but for what both begin and end with.
func differing(older, newer []entry) (list []policy.FieldChange) {
	for len(older) > 0 && len(newer) > 0 && older[0].whole == newer[0].whole {
		older, newer = older[1:], newer[1:]
	}
	for len(older) > 0 && len(newer) > 0 && older[len(older)-1].whole == newer[len(newer)-1].whole {
		older, newer = older[:len(older)-1], newer[:len(newer)-1]
	}
	for i := range max(len(older), len(newer)) {
		var from, to entry
		if i < len(older) {
			from = older[i]
		}
		if i < len(newer) {
			to = newer[i]
		}
		switch {
		case from == to:
		case from.path != to.path:
			list = append(list, policy.FieldChange{Field: from.path, From: from.told}, policy.FieldChange{Field: to.path, To: to.told})
		case from.told == to.told:
			list = append(list, policy.FieldChange{Field: to.path, From: from.told, To: to.told + ", with other fields"})
		default:
			list = append(list, policy.FieldChange{Field: to.path, From: from.told, To: to.told})
		}
	}
	return slices.DeleteFunc(list, func(f policy.FieldChange) bool { return f.Field == "" }) // where one has ended before the other
}
