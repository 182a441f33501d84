package workflow

import (
	"fmt"
	"regexp"
	"slices"

	"tidemark"
	"tidemark/internal/strictyaml"
	"tidemark/policy"
)

// Limits of a workflow: far above what somebody writes by hand.
const (
	MaxBytes      = 256 << 10 // of a document
	MaxSteps      = 1000      // of a plan
	MaxParameters = 64
	maxItems      = 256  // of a list
	maxText       = 4096 // bytes of a value
	maxAtOnce     = 64
)

// Workflow is what a document describes. Check it with [Workflow.Validate] before use; what [Parse] returns was checked.
type Workflow struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	// TimeZone is an IANA name, by which the schedule and the built-in parameters date and time are meant. Empty: UTC.
	TimeZone string `json:"time_zone,omitempty"`
	// Schedule is when it is run by itself, with the defaults of its parameters; nil: by hand only.
	Schedule   *policy.Capture `json:"schedule,omitempty"`
	Parameters []Parameter     `json:"parameters,omitempty"`
	// Timeout is how long its steps may take in all, on-failure steps not counted. 0: [DefaultTimeout].
	Timeout policy.Duration `json:"timeout,omitzero"`
	Steps   []Item          `json:"steps"`
	// OnFailure are done, one after another, when a step has failed, or the time is over.
	OnFailure []Item `json:"on_failure,omitempty"`
}

// DefaultTimeout is how long the steps of a workflow may take that does not say so.
const DefaultTimeout = policy.Duration(24 * 3600 * 1e9)

// Type says what values a parameter may have.
type Type string

// The types of parameters.
const (
	TypeText   Type = "text"   // any one line; also if no type is given
	TypeName   Type = "name"   // of an application, clone, host or bookmark
	TypeRef    Type = "ref"    // APP@POINT
	TypeNumber Type = "number" // 0 or more, whole
	TypeList   Type = "list"   // of names, for for_each
)

// Parameter is a value that is given when a workflow is run.
type Parameter struct {
	Name        string `json:"name"`
	Type        Type   `json:"type,omitempty"`
	Description string `json:"description,omitempty"`
	// Default is its value where none is given; nil: one has to be given.
	Default *Value `json:"default,omitempty"`
	// OneOf are the only values that it may have; empty: all of its type.
	OneOf []string `json:"one_of,omitempty"`
}

// Value is a text, or a list of texts.
type Value struct {
	Text string
	List []string // nil: it is a text
}

// FromText makes v a text.
func (v *Value) FromText(text string) error {
	*v = Value{Text: text}
	return nil
}

// FromList makes v a list.
func (v *Value) FromList(texts []string) error {
	*v = Value{List: texts}
	return nil
}

// Item is an entry of a list of steps: exactly one verb, or one group.
type Item struct {
	// Name is how it is called within its list. Empty: by its verb.
	Name string `json:"name,omitempty"`
	// Timeout is how long the step may take, waiting for its turn included. 0: as long as the workflow.
	Timeout policy.Duration `json:"timeout,omitzero"`

	Capture   *Capture   `json:"capture,omitempty"`
	Bookmark  *Bookmark  `json:"bookmark,omitempty"`
	Clone     *Clone     `json:"clone,omitempty"`
	Refresh   *Refresh   `json:"refresh,omitempty"`
	Prepare   *Prepare   `json:"prepare,omitempty"`
	Publish   *Publish   `json:"publish,omitempty"`
	Unpublish *Unpublish `json:"unpublish,omitempty"`
	Prove     *Prove     `json:"prove,omitempty"`
	Wait      *Wait      `json:"wait,omitempty"`
	Remove    *Remove    `json:"remove,omitempty"`
	Expire    *Expire    `json:"expire,omitempty"`
	Script    *Script    `json:"script,omitempty"`
	Notify    *Notify    `json:"notify,omitempty"`

	// Parallel are steps that are done at the same time.
	Parallel []Item `json:"parallel,omitempty"`
	// ForEach has Steps done for each item of a list, which is written out or the name of a parameter in braces.
	ForEach *Value `json:"for_each,omitempty"`
	As      string `json:"as,omitempty"` // how the item is called in these steps; empty: item
	Steps   []Item `json:"steps,omitempty"`
	// AtOnce is how many of Parallel or ForEach are under way at a time. 0: all of Parallel, one of ForEach.
	AtOnce int `json:"at_once,omitempty"`
}

// The built-in parameters.
const (
	ParamWorkflow = "workflow" // the workflow's name
	ParamRun      = "run"      // the number of the run; 0 in a dry run
	ParamDate     = "date"     // 20261129, of the run's begin
	ParamTime     = "time"     // 030000, of the run's begin
)

var builtin = []string{ParamWorkflow, ParamRun, ParamDate, ParamTime}

// paramName is what parameters may be called: they become variables of an environment, too.
var paramName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

// checks collects the first fault.
type checks struct{ strictyaml.Checks }

func (c *checks) duration(field string, d policy.Duration) {
	c.That(d >= 0 && d <= policy.MaxDuration, field, "write 90m, 36h or 7d", "%v is not possible", d)
}

func (c *checks) paramName(field, name string) {
	c.That(paramName.MatchString(name), field, "use small letters, digits and '_', beginning with a letter", "%.40q is no name of a parameter", name)
	c.That(!slices.Contains(builtin, name), field, "choose another", "%s is built in", name)
}

// Validate returns an error of kind [tidemark.Invalid] that names the field, unless w can be run: its names, its schedule, its
// structure, and what its texts refer to. If all parameters have defaults, it is planned with them, too.
func (w Workflow) Validate() error {
	var c checks
	c.Name("name", w.Name)
	c.duration("timeout", w.Timeout)
	w.checkSchedule(&c)
	known := w.checkParameters(&c)
	c.That(len(w.Steps) > 0, "steps", "write at least one", "it does nothing")
	c.items("steps", w.Steps, known)
	c.items("on_failure", w.OnFailure, known)
	if c.First != nil || !w.complete() {
		return c.Err()
	}
	_, err := w.Plan(nil, Run{})
	return err
}

// complete reports whether all parameters have defaults.
func (w Workflow) complete() bool {
	return !slices.ContainsFunc(w.Parameters, func(p Parameter) bool { return p.Default == nil })
}

// scope is what texts may refer to, and whether it is a list.
type scope map[string]bool

func (s scope) with(name string) scope {
	wider := scope{name: false}
	for n, list := range s {
		if n != name {
			wider[n] = list
		}
	}
	return wider
}

func (w Workflow) checkParameters(c *checks) scope {
	known := scope{}
	for _, name := range builtin {
		known[name] = false
	}
	c.That(len(w.Parameters) <= MaxParameters, "parameters", fmt.Sprintf("at most %d are allowed", MaxParameters), "%d are too many", len(w.Parameters))
	for i, p := range w.Parameters {
		field := fmt.Sprintf("parameters[%d]", i)
		c.paramName(field+".name", p.Name)
		_, again := known[p.Name]
		c.That(!again, field+".name", "leave one of them away", "%s stands here twice", p.Name)
		known[p.Name] = p.Type == TypeList
		types := []Type{"", TypeText, TypeName, TypeRef, TypeNumber, TypeList}
		c.That(slices.Contains(types, p.Type), field+".type", "there are text, name, ref, number and list", "%.40q is no type", string(p.Type))
		if p.Default != nil {
			c.Good(field+".default", w.accept(p, *p.Default))
		}
		c.That(p.Default != nil || w.Schedule == nil, field, "give it a default", "nobody gives it a value when the schedule runs it")
	}
	return known
}

// accept returns an error unless a parameter may have a value.
func (p Parameter) accept(v Value) error {
	if p.Type == TypeList != (v.List != nil) {
		if p.Type == TypeList {
			return tidemark.Errorf(tidemark.Invalid, "%s is a list", p.Name).WithHint("write [a, b], or on the command line a,b")
		}
		return tidemark.Errorf(tidemark.Invalid, "%s is a single value", p.Name).WithHint("give it type: list, or one value")
	}
	if len(v.List) > maxItems {
		return tidemark.Errorf(tidemark.Invalid, "%s has %d items", p.Name, len(v.List)).WithHint(fmt.Sprintf("at most %d are allowed", maxItems))
	}
	for i, item := range v.List {
		if err := p.acceptOne(TypeName, item); err != nil {
			return err
		}
		if slices.Contains(v.List[:i], item) {
			return tidemark.Errorf(tidemark.Invalid, "%s has %s twice", p.Name, item).WithHint("name it once")
		}
	}
	if v.List != nil {
		return nil
	}
	return p.acceptOne(p.Type, v.Text)
}

func (p Parameter) acceptOne(t Type, text string) (err error) {
	if len(p.OneOf) > 0 && !slices.Contains(p.OneOf, text) {
		return tidemark.Errorf(tidemark.Invalid, "%s is %.60q, which is none of its values", p.Name, text).WithHint(fmt.Sprintf("there are %.200v", p.OneOf))
	}
	switch t {
	case TypeName:
		err = tidemark.CheckName(text)
	case TypeRef:
		_, err = tidemark.ParseRef(text)
	case TypeNumber:
		if !number.MatchString(text) {
			err = tidemark.Errorf(tidemark.Invalid, "%.40q is no number", text).WithHint("write a whole number such as 7")
		}
	default:
		err = checkText(text)
	}
	return err
}

var number = regexp.MustCompile(`^(0|[1-9][0-9]{0,17})$`)

// checkText refuses what is more than one line of text.
func checkText(s string) error {
	if len(s) > maxText {
		return tidemark.Errorf(tidemark.Invalid, "a text of %d bytes is too long", len(s)).WithHint(fmt.Sprintf("at most %d are allowed", maxText))
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return tidemark.Errorf(tidemark.Invalid, "the text %.40q is more than one line", s).WithHint("leave control characters away")
		}
	}
	return nil
}

// items checks the structure of a list of steps.
func (c *checks) items(path string, list []Item, known scope) {
	names := map[string]bool{}
	for i, x := range list {
		field := fmt.Sprintf("%s[%d]", path, i)
		if x.Name != "" {
			c.Name(field+".name", x.Name)
			c.That(!names[x.Name], field+".name", "give it another", "there are two steps %s here", x.Name)
			names[x.Name] = true
		}
		c.duration(field+".timeout", x.Timeout)
		c.item(field, x, known)
	}
}

func (c *checks) item(field string, x Item, known scope) {
	verbs := x.verbs()
	n := len(verbs)
	if x.Parallel != nil {
		n++
	}
	if x.ForEach != nil || x.Steps != nil {
		n++
	}
	c.That(n == 1, field, "a step is one of "+verbNames()+", parallel, or for_each with steps", "it says %d things to do, and not one", n)
	c.That(x.AtOnce >= 0 && x.AtOnce <= maxAtOnce, field+".at_once", fmt.Sprintf("write 1 to %d", maxAtOnce), "%d is not possible", x.AtOnce)
	c.That(x.AtOnce == 0 || len(verbs) == 0, field+".at_once", "leave it away", "it goes with parallel and for_each only")
	c.That(x.As == "" || x.ForEach != nil, field+".as", "leave it away", "it goes with for_each only")
	c.That(x.Timeout == 0 || len(verbs) > 0, field+".timeout", "give the steps in it timeouts of their own", "a group has none")
	c.That((x.ForEach != nil) == (len(x.Steps) > 0), field, "write for_each: [a, b] and steps: below it", "for_each goes with steps")
	for _, v := range verbs {
		for _, t := range textsOf(v.body) {
			c.Good(field+"."+v.kind+"."+t.name, checkTemplate(*t.text, known))
		}
	}
	if x.Parallel != nil {
		c.That(len(x.Parallel) > 0, field+".parallel", "write at least one step", "there is nothing in it")
		c.items(field+".parallel", x.Parallel, known)
	}
	if x.ForEach != nil {
		c.forEach(field, x, known)
	}
}

func (c *checks) forEach(field string, x Item, known scope) {
	as := x.as()
	if x.As != "" {
		c.paramName(field+".as", x.As)
	}
	_, taken := known[as]
	c.That(!taken, field, "say another with as:", "%s is the name of something else here", as)
	if list := x.ForEach.List; list != nil {
		c.Good(field+".for_each", Parameter{Name: "for_each", Type: TypeList}.accept(*x.ForEach))
	} else {
		name, ok := only(x.ForEach.Text)
		c.That(ok && known[name], field+".for_each", `write [a, b], or "{{ hosts }}" with a parameter of type list`, "%.60q is no list", x.ForEach.Text)
	}
	c.items(field+".steps", x.Steps, known.with(as))
}

// as is how the item of a for_each is called.
func (x Item) as() string {
	if x.As == "" {
		return "item"
	}
	return x.As
}
