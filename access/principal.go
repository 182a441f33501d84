package access

// Method is how a principal proved who he is.
type Method string

// The methods. The zero value is none, and allows nothing.
const (
	BySocket   Method = "socket"   // the server's own unix socket: its administrator
	ByPassword Method = "password" // a session that began with a password
	ByOIDC     Method = "oidc"     // a session that began at an OpenID provider
	ByToken    Method = "token"    // an API token
)

func (m Method) known() bool {
	switch m {
	case BySocket, ByPassword, ByOIDC, ByToken:
		return true
	}
	return false
}

// Principal is somebody who asks. Only who has checked his secret makes one.
type Principal struct {
	User   string // empty for the socket
	Groups []string
	Method Method
	// Token is the one that he came with, if [ByToken]. It narrows what he may do.
	Token *Token
}

// String is the user's name, or what stands for it.
func (p Principal) String() string {
	switch {
	case p.Method == BySocket:
		return "the administrator at the socket"
	case p.User == "":
		return "nobody"
	}
	return p.User
}

// Object is what an action is done to, with all that the decision has to know of it.
type Object struct {
	Kind Kind
	Name string
	// Owner is the user to whom a clone, mount, export, job or token belongs; empty: nobody.
	Owner string
	// Source is the application whose data a clone, mount, export or job has, and
	// Via the clones in between, if it was not made of the application itself. A
	// mount of a clone dev of orders has Source orders and Via dev.
	Source string
	Via    []string
	// Members are the applications of a consistency group.
	Members []string
	// Host is where it is, or where an application's production is.
	Host string
	// Shared are those with whom a clone was shared.
	Shared []Subject
	// Published says that the point which is asked for, or the clone, is fit for others.
	Published bool
	// Bookmark is the name of the point that is asked for, where it has one.
	Bookmark string
}

// reached reports whether o is at a level of p's.
func (o Object) reached(p Principal, l Level) bool {
	own := o.Owner != "" && o.Owner == p.User
	switch l {
	case All:
		return true
	case Open:
		return own || o.Owner == "" || o.lent(p)
	case Own:
		return own
	}
	return false
}

// lent reports that o was published, or shared with p.
func (o Object) lent(p Principal) bool {
	if o.Published {
		return true
	}
	for _, s := range o.Shared {
		if s.is(p) {
			return true
		}
	}
	return false
}
