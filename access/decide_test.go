package access

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
)

// matrix is testdata/matrix.txt: action, role, and the letters of the objects.
func matrix(t *testing.T) map[Action]map[Role]string {
	t.Helper()
	text, err := os.ReadFile("testdata/matrix.txt")
	if err != nil {
		t.Fatal(err)
	}
	m := map[Action]map[Role]string{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		if len(f) != 6 {
			t.Fatalf("a line of %d columns: %s", len(f), line)
		}
		m[Action(f[0])] = map[Role]string{"admin": f[1], "operator": f[2], "owner": f[3], "developer": f[4], "auditor": f[5]}
	}
	return m
}

// relations are objects as the letters of the matrix say.
var relations = map[string]func(o Object) Object{
	"n": func(o Object) Object { return o },
	"o": func(o Object) Object { o.Owner = "alice"; return o },
	"f": func(o Object) Object { o.Owner, o.Shared = "bob", []Subject{{User, "carol"}, {Group, "ops"}}; return o },
	"s": func(o Object) Object { o.Owner, o.Shared = "bob", []Subject{{User, "carol"}, {Group, "dev"}}; return o },
	"p": func(o Object) Object { o.Owner, o.Published = "bob", true; return o },
}

var everything = Scope{Kind: Everything}

// anyPoint are limits that stand in no way.
var anyPoint = Limits{Clones: Unlimited, Bytes: Unlimited, Lifetime: Unlimited, Hosts: []Pattern{"*"}, Points: PointRule{Any: true}}

func grantOf(r Role, s Scope) Grant {
	g := Grant{ID: 1, Subject: Subject{User, "alice"}, Role: r, Scope: s}
	if r.Limited() {
		g.Limits = anyPoint
	}
	return g
}

func alice() Principal {
	return Principal{User: "alice", Groups: []string{"dev"}, Method: ByPassword}
}

// thing is an object of orders on host h1, of any kind.
func thing(k Kind) Object {
	o := Object{Kind: k, Name: "x", Host: "h1"}
	switch k {
	case KindApplication:
		o.Name = "orders"
	case KindGroup:
		o.Members = []string{"orders", "billing"}
	case KindHost:
		o.Name = "h1"
	case KindClone, KindMount, KindExport, KindJob:
		o.Source = "orders"
	}
	return o
}

func TestMatrix(t *testing.T) {
	m := matrix(t)
	if len(m) != len(Actions()) {
		t.Errorf("the matrix has %d actions, the table %d", len(m), len(Actions()))
	}
	asked := 0
	for _, a := range Actions() {
		if m[a] == nil {
			t.Errorf("the matrix lacks %s", a)
			continue
		}
		if a.Means() == "" || len(a.Kinds()) == 0 {
			t.Errorf("%s is not explained", a)
		}
		for _, kind := range a.Kinds() {
			for _, r := range Roles() {
				for letter, relate := range relations {
					o := relate(thing(kind))
					want := strings.Contains(m[a][r], letter)
					scopes := []Scope{everything, {Applications, []Pattern{"orders", "billing"}}, {Hosts, []Pattern{"h?"}}}
					for _, s := range scopes {
						want := want && (s.Covers(o) || letter == "o" && kind == KindToken || forAll(a) || r == Developer && kind == KindHost)
						d := Decide(alice(), []Grant{grantOf(r, s)}, a, o)
						if d.Allowed != want || d.Allowed != (d.Grant != nil) || d.Allowed != (d.Err() == nil) || d.Reason == "" {
							t.Errorf("%s of %s may %s to %s %q: %v (%s), want %v", r, s.Kind, a, kind, letter, d.Allowed, d.Reason, want)
						}
						asked++
					}
					if d := Decide(alice(), []Grant{grantOf(r, Scope{Applications, []Pattern{"hr"}})}, a, o); d.Allowed && !forAll(a) && kind != KindToken && kind != KindHost {
						t.Errorf("%s of another application may %s to %s %q", r, a, kind, letter)
					}
				}
			}
		}
	}
	t.Logf("%d questions", asked)
}

// forAll are the three that the design names, here once more.
func forAll(a Action) bool { return a == "sla.view" || a == "workflow.view" || a == "server.view" }

func TestNothingByDefault(t *testing.T) {
	all := grantOf(Admin, everything)
	for _, a := range Actions() {
		for _, kind := range a.Kinds() {
			o := relations["o"](thing(kind))
			for name, ask := range map[string]func() Decision{
				"no grant":         func() Decision { return Decide(alice(), nil, a, o) },
				"nobody":           func() Decision { return Decide(Principal{}, []Grant{all}, a, o) },
				"no method":        func() Decision { return Decide(Principal{User: "alice"}, []Grant{all}, a, o) },
				"unknown method":   func() Decision { return Decide(Principal{User: "alice", Method: "magic"}, []Grant{all}, a, o) },
				"token is missing": func() Decision { return Decide(Principal{User: "alice", Method: ByToken}, []Grant{all}, a, o) },
				"token, not by it": func() Decision {
					return Decide(Principal{User: "alice", Method: ByOIDC, Token: &Token{}}, []Grant{all}, a, o)
				},
				"another user": func() Decision { return Decide(Principal{User: "Alice", Method: ByOIDC}, []Grant{all}, a, o) },
				"user is no group": func() Decision {
					g := all
					g.Subject = Subject{Group, "alice"}
					return Decide(alice(), []Grant{g}, a, o)
				},
				"group is no user": func() Decision { g := all; g.Subject = Subject{User, "dev"}; return Decide(alice(), []Grant{g}, a, o) },
				"unknown subject":  func() Decision { g := all; g.Subject.Kind = "team"; return Decide(alice(), []Grant{g}, a, o) },
				"unknown role":     func() Decision { g := all; g.Role = "root"; return Decide(alice(), []Grant{g}, a, o) },
				"no role":          func() Decision { g := all; g.Role = ""; return Decide(alice(), []Grant{g}, a, o) },
				"unknown scope":    func() Decision { g := all; g.Scope.Kind = "world"; return Decide(alice(), []Grant{g}, a, o) },
				"no scope":         func() Decision { g := all; g.Scope = Scope{}; return Decide(alice(), []Grant{g}, a, o) },
				"named everything": func() Decision { g := all; g.Scope.Names = []Pattern{"*"}; return Decide(alice(), []Grant{g}, a, o) },
				"bad pattern": func() Decision {
					g := all
					g.Scope = Scope{Applications, []Pattern{"*", "a/b"}}
					return Decide(alice(), []Grant{g}, a, o)
				},
				"unknown limits":    func() Decision { g := all; g.Limits.Clones = -2; return Decide(alice(), []Grant{g}, a, o) },
				"another kind":      func() Decision { return Decide(alice(), []Grant{all}, a, Object{Kind: "moon"}) },
				"no kind":           func() Decision { return Decide(alice(), []Grant{all}, a, Object{Name: "x"}) },
				"unknown action":    func() Decision { return Decide(alice(), []Grant{all}, a+"x", o) },
				"no action":         func() Decision { return Decide(Principal{Method: BySocket}, []Grant{all}, "", o) },
				"socket, no action": func() Decision { return Decide(Principal{Method: BySocket}, nil, "x", o) },
			} {
				if d := ask(); d.Allowed || d.Grant != nil || tidemark.KindOf(d.Err()) != tidemark.Denied {
					t.Errorf("%s: %s to %s: %+v", name, a, kind, d)
				}
			}
			if d := Decide(Principal{Method: BySocket}, nil, a, o); !d.Allowed {
				t.Errorf("the socket may not %s: %s", a, d.Reason)
			}
		}
	}
}

func TestCloneNames(t *testing.T) {
	// Nobody gets rights over a copy by its name, unless an administrator wrote just that name.
	clone := Object{Kind: KindClone, Name: "orders-mine", Owner: "bob", Source: "hr", Via: []string{"orders-live"}}
	mount := Object{Kind: KindMount, Name: "orders-m", Owner: "bob", Source: "hr", Via: []string{"orders-live"}}
	for pattern, want := range map[Pattern][2]bool{"orders-*": {}, "*": {true, true}, "hr": {true, true}, "orders-mine": {true, false}, "orders-live": {true, true}, "orders-m": {}, "orders": {}} {
		for i, o := range []Object{clone, mount} {
			if got := (Scope{Applications, []Pattern{pattern}}).Covers(o); got != want[i] {
				t.Errorf("%s covers %s: %v", pattern, o.Name, got)
			}
		}
	}
	group := Object{Kind: KindGroup, Name: "orders", Members: []string{"orders", "hr"}}
	if (Scope{Applications, []Pattern{"orders"}}).Covers(group) || (Scope{Applications, []Pattern{"*"}}).Covers(Object{Kind: KindGroup}) {
		t.Error("a group is covered though a member is not")
	}
	run := Object{Kind: KindJob, Name: "7", Owner: "bob", Parts: []Object{clone, {Kind: KindApplication, Name: "billing"}}}
	for pattern, want := range map[Pattern]bool{"hr": false, "billing": false, "orders-mine": false, "*": true} {
		if got := (Scope{Applications, []Pattern{pattern}}).Covers(run); got != want {
			t.Errorf("%s covers a run about what is of hr and billing: %v", pattern, got)
		}
	}
	if !(Scope{Applications, []Pattern{"billing", "orders-live"}}).Covers(run) || (Scope{Applications, []Pattern{"*"}}).Covers(Object{Kind: KindJob, Name: "7"}) {
		t.Error("a run is covered by what covers its parts, and nothing else")
	}
}

func TestPoints(t *testing.T) {
	g := grantOf(Developer, everything)
	for name, test := range map[string]struct {
		rule   PointRule
		action Action
		object Object
		want   bool
	}{
		"published only":          {PointRule{}, ApplicationClone, Object{Kind: KindApplication, Name: "orders", Bookmark: "nightly"}, false},
		"published":               {PointRule{}, ApplicationClone, Object{Kind: KindApplication, Name: "orders", Published: true}, true},
		"bookmark":                {PointRule{Bookmarks: []Pattern{"night*"}}, ApplicationMount, Object{Kind: KindApplication, Name: "orders", Bookmark: "nightly"}, true},
		"another bookmark":        {PointRule{Bookmarks: []Pattern{"night*"}}, ApplicationMount, Object{Kind: KindApplication, Name: "orders", Bookmark: "daily"}, false},
		"no bookmark":             {PointRule{Bookmarks: []Pattern{"*"}}, ApplicationMount, Object{Kind: KindApplication, Name: "orders"}, false},
		"any":                     {PointRule{Any: true}, ApplicationClone, Object{Kind: KindApplication, Name: "orders"}, true},
		"own clone":               {PointRule{}, ApplicationClone, Object{Kind: KindClone, Name: "x", Source: "orders", Owner: "alice"}, true},
		"own clone refreshed":     {PointRule{}, CloneRefresh, Object{Kind: KindClone, Name: "x", Source: "orders", Owner: "alice"}, false},
		"own clone refreshed, ok": {PointRule{}, CloneRefresh, Object{Kind: KindClone, Name: "x", Source: "orders", Owner: "alice", Published: true}, true},
		"shared, not published":   {PointRule{}, ApplicationClone, Object{Kind: KindClone, Name: "x", Source: "orders", Owner: "bob", Shared: []Subject{{User, "alice"}}}, false},
		"LiveClone":               {PointRule{}, ApplicationClone, Object{Kind: KindClone, Name: "x", Source: "orders", Owner: "bob", Published: true}, true},
		"takes nothing":           {PointRule{}, ApplicationPoints, Object{Kind: KindApplication, Name: "orders"}, true},
	} {
		g.Limits.Points = test.rule
		if d := Decide(alice(), []Grant{g}, test.action, test.object); d.Allowed != test.want {
			t.Errorf("%s: %v (%s)", name, d.Allowed, d.Reason)
		}
	}
	// A second grant gives what the first does not.
	g.Limits.Points = PointRule{}
	owner := grantOf(Owner, everything)
	owner.ID = 2
	if d := Decide(alice(), []Grant{g, owner}, ApplicationClone, Object{Kind: KindApplication, Name: "orders"}); !d.Allowed || d.Grant.ID != 2 {
		t.Errorf("%+v", d)
	}
}

func TestLimits(t *testing.T) {
	l := Limits{Clones: 3, Bytes: 1000, Lifetime: 3600, Hosts: []Pattern{"h*"}}
	hour := time.Hour
	for name, test := range map[string]struct {
		limits Limits
		usage  Usage
		copy   Copy
		want   bool
	}{
		"first":           {l, Usage{}, Copy{New: 1, Lifetime: hour, Host: "h1"}, true},
		"last":            {l, Usage{2, 999}, Copy{New: 1, Lifetime: hour}, true},
		"one too many":    {l, Usage{3, 0}, Copy{New: 1, Lifetime: hour}, false},
		"two, one left":   {l, Usage{2, 0}, Copy{New: 2, Lifetime: hour}, false},
		"full":            {l, Usage{0, 1000}, Copy{New: 1, Lifetime: hour}, false},
		"too large":       {l, Usage{0, 500}, Copy{New: 1, Bytes: 501, Lifetime: hour}, false},
		"fits":            {l, Usage{0, 500}, Copy{New: 1, Bytes: 500, Lifetime: hour}, true},
		"overflow":        {l, Usage{0, 500}, Copy{New: 1, Bytes: 1<<63 - 1, Lifetime: hour}, false},
		"many":            {l, Usage{1, 0}, Copy{New: 1<<63 - 1, Lifetime: hour}, false},
		"over already":    {l, Usage{9, 0}, Copy{New: 1, Lifetime: hour}, false},
		"refresh":         {l, Usage{9, 2000}, Copy{Lifetime: hour}, true},
		"too long":        {l, Usage{}, Copy{New: 1, Lifetime: hour + 1}, false},
		"for ever":        {l, Usage{}, Copy{New: 1}, false},
		"longer":          {l, Usage{3, 1000}, Copy{Lifetime: 2 * hour}, false},
		"another host":    {l, Usage{}, Copy{New: 1, Lifetime: hour, Host: "x"}, false},
		"the server":      {l, Usage{}, Copy{New: 1, Lifetime: hour, Host: ServerHost}, false},
		"negative":        {l, Usage{}, Copy{New: -1, Lifetime: hour}, false},
		"negative bytes":  {l, Usage{}, Copy{New: 1, Bytes: -1, Lifetime: hour}, false},
		"negative usage":  {l, Usage{Clones: -5}, Copy{New: 1, Lifetime: hour}, false},
		"zero":            {Limits{}, Usage{}, Copy{New: 1, Lifetime: 1}, false},
		"unlimited":       {anyPoint, Usage{1 << 40, 1 << 60}, Copy{New: 1 << 40, Bytes: 1<<63 - 1, Host: ServerHost}, true},
		"huge lifetime":   {Limits{Clones: 1, Bytes: 1, Lifetime: 1<<63 - 1}, Usage{}, Copy{New: 1, Lifetime: 1<<63 - 1}, false}, // seconds end before
		"ages":            {Limits{Clones: 1, Bytes: 1, Lifetime: 1<<63 - 1}, Usage{}, Copy{New: 1, Lifetime: 1 << 62}, true},
		"a point":         {l, Usage{9, 999}, Copy{Point: true}, true},
		"a point, full":   {l, Usage{1, 1000}, Copy{Point: true}, false},
		"extend for ever": {Limits{Lifetime: Unlimited}, Usage{}, Copy{}, true},
	} {
		if err := test.limits.Allow(test.usage, test.copy); (err == nil) != test.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWithin(t *testing.T) {
	small, large := grantOf(Developer, everything), grantOf(Developer, everything)
	small.Limits.Clones, large.Limits.Clones, large.ID = 1, 2, 2
	app := Object{Kind: KindApplication, Name: "orders"}
	d := Decide(alice(), []Grant{small, large}, ApplicationClone, app)
	for used, want := range []int64{1, 2, 0} {
		got := d.Within(Usage{Clones: used}, Copy{New: 1})
		if got.Allowed != (want > 0) || got.Allowed && got.Grant.ID != want || got.Allowed != (got.Err() == nil) {
			t.Errorf("beside %d: %+v", used, got)
		}
	}
	owner := grantOf(Owner, everything)
	owner.ID = 3
	if d := Decide(alice(), []Grant{small, owner}, ApplicationClone, app).Within(Usage{Clones: 99}, Copy{New: 1}); !d.Allowed || d.Grant.ID != 3 {
		t.Errorf("an owner is limited: %+v", d)
	}
	if d := Decide(alice(), nil, ApplicationClone, app).Within(Usage{}, Copy{}); d.Allowed {
		t.Error("denied, and then allowed")
	}
	if d := Decide(Principal{Method: BySocket}, nil, ApplicationClone, app).Within(Usage{Clones: 99}, Copy{New: 1}); !d.Allowed {
		t.Error("the socket is limited")
	}
}

// TestCures holds that who is refused is told what helps him: a grant only where nothing else does.
func TestCures(t *testing.T) {
	dev := grantOf(Developer, everything)
	dev.Limits = Limits{Clones: 3, Bytes: 1000, Lifetime: 8 * 3600, Hosts: []Pattern{ServerHost, "db*"}}
	app := Object{Kind: KindApplication, Name: "orders", Published: true}
	none := dev
	none.Limits = Limits{}
	hour := time.Hour
	for name, test := range map[string]struct {
		grant Grant
		usage Usage
		copy  Copy
		want  string
	}{
		"too many":   {dev, Usage{3, 0}, Copy{New: 1, Lifetime: hour}, "remove one of them"},
		"too large":  {dev, Usage{1, 1000}, Copy{New: 1, Lifetime: hour}, "remove one of the clones, or refresh it"},
		"no end":     {dev, Usage{}, Copy{New: 1, Host: ServerHost}, "--for 8h, or less"},
		"extended":   {dev, Usage{}, Copy{Lifetime: 9 * hour}, "counts from when it was made"},
		"elsewhere":  {dev, Usage{}, Copy{New: 1, Lifetime: hour, Host: "web1"}, "the server's own host, without --host, db*"},
		"no clones":  {none, Usage{}, Copy{New: 1, Lifetime: hour}, askForGrant},
		"no bytes":   {none, Usage{}, Copy{Point: true}, askForGrant},
		"not at all": {none, Usage{}, Copy{}, askForGrant},
	} {
		err := Decide(alice(), []Grant{test.grant}, ApplicationClone, app).Within(test.usage, test.copy).Err()
		if err == nil || !strings.Contains(err.Error(), test.want) || test.want != askForGrant && strings.Contains(err.Error(), askForGrant) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, test := range map[string]struct {
		do   Action
		on   Object
		want string
	}{
		"its point":   {ApplicationClone, Object{Kind: KindApplication, Name: "orders"}, "`tidemark points orders` shows which are"},
		"its source":  {CloneRefresh, Object{Kind: KindClone, Name: "t4", Owner: "alice", Source: "orders", Via: []string{"masked"}}, "`tidemark points masked` shows which are"},
		"of orders":   {CloneRefresh, Object{Kind: KindClone, Name: "t4", Owner: "alice", Source: "orders"}, "`tidemark points orders` shows which are"},
		"another's":   {CloneUse, Object{Kind: KindClone, Name: "his", Owner: "bob", Source: "orders"}, "ask him to share it"},
		"not by role": {ApplicationRestore, app, askForGrant},
	} {
		if err := Decide(alice(), []Grant{dev}, test.do, test.on).Err(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for d, want := range map[time.Duration]string{8 * hour: "8h", 90 * time.Minute: "1h30m", 10 * time.Minute: "10m", 90 * time.Second: "1m30s", 20 * time.Second: "20s", 0: "0s"} {
		if got := brief(d); got != want {
			t.Errorf("%v: %s", d, got)
		}
	}
}

func TestTokensNarrow(t *testing.T) {
	by := func(tok Token) Principal { return Principal{User: "alice", Method: ByToken, Token: &tok} }
	all := []Grant{grantOf(Admin, everything)}
	orders, hr := Object{Kind: KindApplication, Name: "orders"}, Object{Kind: KindApplication, Name: "hr"}
	for name, test := range map[string]struct {
		token  Token
		grants []Grant
		action Action
		object Object
		want   bool
	}{
		"all of it":                 {Token{}, all, AccessManage, Object{Kind: KindAccess}, true},
		"role":                      {Token{Roles: []Role{Operator}}, all, ApplicationExpire, orders, true},
		"role without it":           {Token{Roles: []Role{Operator}}, all, AccessManage, Object{Kind: KindAccess}, false},
		"role does not add":         {Token{Roles: []Role{Admin}}, []Grant{grantOf(Auditor, everything)}, ApplicationClone, orders, false},
		"unknown role":              {Token{Roles: []Role{"root"}}, all, ApplicationView, orders, false},
		"application":               {Token{Applications: []Pattern{"ord*"}}, all, ApplicationRestore, orders, true},
		"another application":       {Token{Applications: []Pattern{"ord*"}}, all, ApplicationRestore, hr, false},
		"pool, of an application":   {Token{Applications: []Pattern{"*"}}, all, PoolManage, Object{Kind: KindPool}, false},
		"server, of an application": {Token{Applications: []Pattern{"orders"}}, all, ServerView, Object{Kind: KindServer}, true},
		"level of the token":        {Token{Roles: []Role{Developer}}, all, CloneRemove, relations["f"](thing(KindClone)), false},
		"own, level of the token":   {Token{Roles: []Role{Developer}}, all, CloneRemove, relations["o"](thing(KindClone)), true},
		"makes no tokens":           {Token{}, all, TokenManage, Object{Kind: KindToken, Owner: "alice"}, false},
		"sees tokens":               {Token{}, all, TokenView, Object{Kind: KindToken, Owner: "alice"}, true},
	} {
		d := Decide(by(test.token), test.grants, test.action, test.object)
		if d.Allowed != test.want {
			t.Errorf("%s: %v (%s)", name, d.Allowed, d.Reason)
		}
	}
}

// TestRandom compares Decide and Visible with a model that knows only the
// matrix and regular expressions.
func TestRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	w := &world{rng: rng, matrix: matrix(t)}
	allowed := 0
	for range 30_000 {
		p, grants, a, o := w.principal(), w.grants(), w.action(), Object{}
		o = w.object(a)
		want := w.may(p, grants, a, o)
		d := Decide(p, grants, a, o)
		if d.Allowed != want {
			t.Fatalf("%+v (token %+v) may %s %+v with %+v: %v (%s), want %v", p, p.Token, a, o, grants, d.Allowed, d.Reason, want)
		}
		if d.Allowed {
			allowed++
		}
		if !a.Takes() {
			if shown := Visible(p, grants, a).Shows(o); shown != want {
				t.Fatalf("%+v (token %+v) sees %+v by %s with %+v: %v, want %v", p, p.Token, o, a, grants, shown, want)
			}
		}
	}
	if allowed < 3000 || allowed > 27_000 {
		t.Errorf("%d of 30,000 were allowed: does this test still test?", allowed)
	}
}

type world struct {
	rng    *rand.Rand
	matrix map[Action]map[Role]string
}

func pick[T any](w *world, list ...T) T { return list[w.rng.IntN(len(list))] }

func (w *world) patterns() (list []Pattern) {
	for range 1 + w.rng.IntN(2) {
		list = append(list, pick[Pattern](w, "orders", "hr", "o*", "*r*", "?r", "live", "l*", "h1", "h?", "*", "dev*"))
	}
	return list
}

func (w *world) principal() Principal {
	p := Principal{User: pick(w, "alice", "bob"), Groups: pick(w, nil, []string{"dev"}, []string{"dev", "ops"}), Method: pick(w, ByPassword, ByOIDC, ByToken)}
	if p.Method == ByToken {
		p.Token = &Token{User: p.User}
		if w.rng.IntN(2) == 0 {
			p.Token.Roles = []Role{pick(w, Roles()...), pick(w, append(Roles(), "root")...)}
		}
		if w.rng.IntN(2) == 0 {
			p.Token.Applications = w.patterns()
		}
	}
	return p
}

func (w *world) grants() (list []Grant) {
	for range w.rng.IntN(4) {
		g := Grant{ID: int64(w.rng.IntN(100)), Subject: pick(w, Subject{User, "alice"}, Subject{User, "bob"}, Subject{Group, "dev"}, Subject{Group, "ops"}),
			Role: pick(w, append(Roles(), Developer, "root")...), Scope: everything}
		if w.rng.IntN(3) > 0 {
			g.Scope = Scope{pick(w, Applications, Hosts, "world"), w.patterns()}
		}
		if g.Role == Developer {
			g.Limits = Limits{Clones: w.rng.IntN(3) - 1, Hosts: pick(w, nil, w.patterns()), Points: PointRule{Any: w.rng.IntN(3) == 0, Bookmarks: pick(w, nil, w.patterns())}}
		}
		list = append(list, g)
	}
	return list
}

func (w *world) action() Action { return pick(w, Actions()...) }

func (w *world) object(a Action) Object {
	o := Object{Kind: pick(w, a.Kinds()...), Name: pick(w, "orders", "hr", "live", "dev1", "h1"), Owner: pick(w, "", "alice", "bob"), Host: pick(w, "", "h1", "h2"),
		Source: pick(w, "", "orders", "hr"), Via: pick(w, nil, []string{"live"}, []string{"dev1", "live"}), Members: pick(w, nil, []string{"orders"}, []string{"orders", "hr"}),
		Published: w.rng.IntN(4) == 0, Bookmark: pick(w, "", "hr", "live")}
	if w.rng.IntN(3) == 0 {
		o.Shared = []Subject{pick(w, Subject{User, "alice"}, Subject{Group, "dev"}, Subject{Group, "ops"})}
	}
	return o
}

// may is the model.
func (w *world) may(p Principal, grants []Grant, a Action, o Object) bool {
	if p.Token != nil && a == "token.manage" {
		return false
	}
	for _, g := range grants {
		for _, letter := range w.letters(p, o) {
			if w.grantSays(p, g, a, o, letter) && w.tokenSays(p, a, o, letter) && w.pointSays(p, g, a, o) {
				return true
			}
		}
	}
	return false
}

// letters say what o is to p, in the words of the matrix.
func (w *world) letters(p Principal, o Object) []string {
	switch o.Owner {
	case "":
		return []string{"n"}
	case p.User:
		return []string{"o"}
	}
	list := []string{"f"}
	if o.Published {
		list = append(list, "p")
	}
	for _, s := range o.Shared {
		if s.Kind == "user" && s.Name == p.User || s.Kind == "group" && slices.Contains(p.Groups, s.Name) {
			list = append(list, "s")
		}
	}
	return list
}

func (w *world) grantSays(p Principal, g Grant, a Action, o Object, letter string) bool {
	mine := g.Subject.Kind == "user" && g.Subject.Name == p.User || g.Subject.Kind == "group" && slices.Contains(p.Groups, g.Subject.Name)
	onHost := slices.Contains([]Kind{"application", "clone", "mount", "export", "job"}, o.Kind)
	covers := g.Scope.Kind == "everything" || g.Scope.Kind == "applications" && holdsData(g.Scope.Names, o) ||
		g.Scope.Kind == "hosts" && (o.Kind == "host" && globs(g.Scope.Names, o.Name) || onHost && o.Host != "" && globs(g.Scope.Names, o.Host))
	switch {
	case g.Scope.Kind == "world":
		return false
	case forAll(a), o.Kind == "token" && letter == "o":
		covers = true
	case (a == "host.view" || a == "host.use") && g.Role == "developer":
		covers = covers || globs(g.Limits.Hosts, o.Name)
	}
	return mine && covers && strings.Contains(w.matrix[a][g.Role], letter)
}

func (w *world) tokenSays(p Principal, a Action, o Object, letter string) bool {
	if p.Token == nil {
		return true
	}
	role := len(p.Token.Roles) == 0
	for _, r := range p.Token.Roles {
		role = role || strings.Contains(w.matrix[a][r], letter)
	}
	free := forAll(a) || a == "host.view" || a == "host.use" || len(p.Token.Applications) == 0
	return role && (free || holdsData(p.Token.Applications, o))
}

func (w *world) pointSays(p Principal, g Grant, a Action, o Object) bool {
	fresh := a == "clone.refresh" || a == "mount.refresh"
	takes := fresh || a == "application.clone" || a == "application.mount" || a == "application.export" || a == "application.restore" || a == "group.restore"
	if !takes || g.Role != "developer" || o.Owner == p.User && !fresh {
		return true
	}
	return o.Published || g.Limits.Points.Any || o.Bookmark != "" && globs(g.Limits.Points.Bookmarks, o.Bookmark)
}

func holdsData(list []Pattern, o Object) bool {
	word := func(s string) bool { return slices.Contains(list, Pattern(s)) }
	switch o.Kind {
	case "application":
		return globs(list, o.Name)
	case "group":
		for _, m := range o.Members {
			if !globs(list, m) {
				return false
			}
		}
		return len(o.Members) > 0
	case "clone", "mount", "export", "job":
		return o.Source != "" && globs(list, o.Source) || o.Kind == "clone" && word(o.Name) || slices.ContainsFunc(o.Via, word)
	}
	return false
}

func globs(list []Pattern, s string) bool {
	for _, p := range list {
		if glob(p).MatchString(s) {
			return true
		}
	}
	return false
}

func glob(p Pattern) *regexp.Regexp {
	q := strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(string(p)))
	return regexp.MustCompile(`^(?s:` + q + `)$`)
}

func TestReasonsSayWhy(t *testing.T) {
	app := Object{Kind: KindApplication, Name: "orders"}
	for want, grants := range map[string][]Grant{
		"no grant is for":       nil,
		"no role":               {grantOf(Auditor, everything)},
		"no grant with such":    {grantOf(Auditor, everything), grantOf(Owner, Scope{Applications, []Pattern{"hr"}})},
		"do not allow this poi": {{Subject: Subject{User, "alice"}, Role: Developer, Scope: everything}},
	} {
		d := Decide(alice(), grants, ApplicationClone, app)
		if d.Allowed || !strings.Contains(d.Reason, want) {
			t.Errorf("%q, want %q", d.Reason, want)
		}
		if err := fmt.Sprint(d.Err()); !strings.Contains(err, "alice may not do application.clone on orders") {
			t.Errorf("%s", err)
		}
	}
	if d := Decide(alice(), []Grant{grantOf(Developer, everything)}, CloneRemove, relations["f"](thing(KindClone))); !strings.Contains(d.Reason, "somebody else") {
		t.Errorf("%q", d.Reason)
	}
}
