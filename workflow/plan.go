package workflow

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark"
	"tidemark/policy"
)

// Run is what is known of a run beside its parameters.
type Run struct {
	ID    int64     // 0: a dry run
	Begun time.Time // zero: not yet
}

// Step is one thing to do.
type Step struct {
	// ID is the step's own in a plan, and the same whenever the same version is planned with the same values: clones[qa1].clone.
	ID   string
	Kind string   // the verb
	Does string   // in a few words
	Body Body     // with all texts filled in
	Env  []string // for a program: the parameters, and those of the step
	// After are the IDs of the steps that have to be done before.
	After []string
	// Timeout is how long it may take; 0: as long as the run.
	Timeout policy.Duration
	// OnFailure: it is done only when a step that is not has failed.
	OnFailure bool
}

// Plan returns what is to be done with values for the parameters, in an order in which it can be done, steps for failures last. Values
// are texts; that of a list has commas between its items. An error is of kind [tidemark.Invalid] and says which value or field is wrong.
func (w Workflow) Plan(given map[string]string, r Run) ([]Step, error) {
	p := planner{w: w, values: map[string]string{}, lists: map[string][]string{}, ids: map[string]bool{}}
	if err := p.take(given); err != nil {
		return nil, err
	}
	begun := r.Begun
	if z, err := time.LoadLocation(w.TimeZone); err == nil {
		begun = begun.In(z)
	}
	p.values[ParamWorkflow], p.values[ParamRun] = w.Name, strconv.FormatInt(r.ID, 10)
	p.values[ParamDate], p.values[ParamTime] = begun.Format("20060102"), begun.Format("150405")
	_, err := p.sequence("steps", "", w.Steps, nil)
	if err != nil {
		return nil, err
	}
	p.failing = true
	_, err = p.sequence("on_failure", "on_failure.", w.OnFailure, nil)
	return p.steps, err
}

// planner makes one plan.
type planner struct {
	w       Workflow
	values  map[string]string
	lists   map[string][]string
	steps   []Step
	ids     map[string]bool
	turns   int // of for_each
	failing bool
}

// take gives the parameters their values.
func (p *planner) take(given map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.ContainsFunc(p.w.Parameters, func(x Parameter) bool { return x.Name == name }) {
			return tidemark.Errorf(tidemark.Invalid, "the workflow %s has no parameter %.40q", p.w.Name, name).WithHint(p.w.parameterHint())
		}
	}
	for _, x := range p.w.Parameters {
		v := x.Default
		if text, ok := given[x.Name]; ok {
			v = &Value{Text: text}
			if x.Type == TypeList {
				*v = Value{List: splitList(text)}
			}
		}
		if v == nil {
			return tidemark.Errorf(tidemark.Invalid, "the workflow %s needs a value for %s", p.w.Name, x.Name).WithHint("give it: --set " + x.Name + "=VALUE")
		}
		if err := p.w.accept(x, *v); err != nil {
			return err
		}
		if x.Type == TypeList {
			p.lists[x.Name] = v.List
			continue
		}
		p.values[x.Name] = v.Text
	}
	return nil
}

func (w Workflow) parameterHint() string {
	if len(w.Parameters) == 0 {
		return "it has none"
	}
	var names []string
	for _, x := range w.Parameters {
		names = append(names, x.Name)
	}
	return "there are " + strings.Join(names, ", ")
}

// splitList splits a list that is written as text. That of nothing is empty.
func splitList(text string) []string {
	list := []string{}
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" || text != "" {
			list = append(list, item)
		}
	}
	return list
}

// sequence plans a list of items one after another. before are the steps that the first of them waits for; it returns those that what
// comes behind the last has to wait for. path is where the items stand, prefix what their IDs begin with.
func (p *planner) sequence(path, prefix string, list []Item, before []string) (ends []string, err error) {
	used := map[string]bool{}
	for _, x := range list {
		used[x.Name] = true
	}
	for i, x := range list {
		name := x.Name
		if name == "" {
			name = unusedName(used, x)
			used[name] = true
		}
		if before, err = p.item(fmt.Sprintf("%s[%d]", path, i), prefix+name, x, before); err != nil {
			return nil, err
		}
	}
	return before, nil
}

// unusedName is a name for an item without one: that of its verb, with a number where there are several.
func unusedName(used map[string]bool, x Item) string {
	kind := "parallel"
	if x.ForEach != nil {
		kind = "each"
	}
	for _, v := range x.verbs() {
		kind = v.kind
	}
	name := kind
	for n := 2; used[name]; n++ {
		name = fmt.Sprintf("%s-%d", kind, n)
	}
	return name
}

func (p *planner) item(path, id string, x Item, before []string) ([]string, error) {
	switch {
	case x.Parallel != nil:
		atOnce := x.AtOnce
		if atOnce == 0 {
			atOnce = len(x.Parallel)
		}
		used := map[string]bool{}
		for _, y := range x.Parallel {
			used[y.Name] = true
		}
		return lanes(len(x.Parallel), atOnce, before, func(i int, before []string) ([]string, error) {
			name := x.Parallel[i].Name
			if name == "" {
				name = unusedName(used, x.Parallel[i])
				used[name] = true
			}
			return p.item(fmt.Sprintf("%s.parallel[%d]", path, i), id+"."+name, x.Parallel[i], before)
		})
	case x.ForEach != nil:
		return p.each(path, id, x, before)
	}
	return p.step(path, id, x, before)
}

// each plans the steps of a for_each once for each item.
func (p *planner) each(path, id string, x Item, before []string) ([]string, error) {
	list := x.ForEach.List
	if list == nil {
		name, _ := only(x.ForEach.Text)
		list = p.lists[name]
	}
	as := x.as()
	defer delete(p.values, as)
	return lanes(len(list), max(x.AtOnce, 1), before, func(i int, before []string) ([]string, error) {
		if p.turns++; p.turns > maxTurns {
			return nil, tidemark.Errorf(tidemark.Invalid, "its lists within lists have more than %d items", maxTurns).WithHint("make them shorter")
		}
		p.values[as] = list[i]
		return p.sequence(path+".steps", fmt.Sprintf("%s[%s].", id, list[i]), x.Steps, before)
	})
}

// maxTurns bounds how often steps are planned for an item, for inner lists may be empty.
const maxTurns = 10 * MaxSteps

// lanes plans n things of which so many are under way at a time: each begins when one so many before it has ended.
func lanes(n, atOnce int, before []string, one func(i int, before []string) ([]string, error)) ([]string, error) {
	if n == 0 {
		return before, nil
	}
	ends := make([][]string, n)
	for i := range n {
		mine := before
		if i >= atOnce {
			mine = ends[i-atOnce]
		}
		var err error
		if ends[i], err = one(i, mine); err != nil {
			return nil, err
		}
	}
	return slices.Concat(ends[max(0, n-atOnce):]...), nil
}

// step plans a single verb.
func (p *planner) step(path, id string, x Item, before []string) ([]string, error) {
	var c checks
	for _, v := range x.verbs() {
		c.That(len(p.steps) < MaxSteps, path, "make its lists shorter", "there are more than %d steps", MaxSteps)
		c.That(!p.ids[id], path, "give one of them another name", "there are two steps %s", id)
		s := Step{ID: id, Kind: v.kind, Body: copyOf(v.body), After: before, Timeout: x.Timeout, OnFailure: p.failing}
		for _, t := range textsOf(s.Body) {
			filled, err := fill(*t.text, p.value)
			c.Good(path+"."+v.kind+"."+t.name, err)
			*t.text = filled
			t.put()
		}
		if c.First == nil {
			s.Body.check(&c, path+"."+v.kind)
		}
		if c.First != nil {
			return nil, c.Err()
		}
		s.Does = s.Body.String()
		if script, ok := s.Body.(*Script); ok {
			s.Env = p.env(id, script)
		}
		p.ids[id] = true
		p.steps = append(p.steps, s)
	}
	return []string{id}, nil
}

func (p *planner) value(name string) (string, error) {
	v, ok := p.values[name]
	if !ok {
		return "", tidemark.Errorf(tidemark.Invalid, "there is no parameter %.40q here", name)
	}
	return v, nil
}

// env is the environment of a program: TIDEMARK_PARAM_ and the name of each parameter, the step, and its arguments.
func (p *planner) env(id string, s *Script) (env []string) {
	for _, name := range slices.Sorted(maps.Keys(p.values)) {
		env = append(env, "TIDEMARK_PARAM_"+strings.ToUpper(name)+"="+p.values[name])
	}
	for _, name := range slices.Sorted(maps.Keys(p.lists)) {
		env = append(env, "TIDEMARK_PARAM_"+strings.ToUpper(name)+"="+strings.Join(p.lists[name], ","))
	}
	env = append(env, "TIDEMARK_STEP="+id)
	for _, key := range slices.Sorted(maps.Keys(s.Args)) {
		env = append(env, "TIDEMARK_ARG_"+strings.ToUpper(key)+"="+s.Args[key])
	}
	return env
}
