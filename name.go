package tidemark

import "fmt"

// MaxName is the longest name, in bytes. Names become file names, socket paths
// (108 bytes at most on Linux) and database cluster names.
const MaxName = 48

// CheckName returns an error of kind [Invalid] unless s can name an
// application, volume, clone or, with [CheckBookmark], bookmark: 1 to [MaxName] bytes of a-z A-Z 0-9 . _ -,
// the first one a letter or digit. So no name escapes a path, is an option,
// or contains the @ of a point.
func CheckName(s string) error {
	if s == "" {
		return Errorf(Invalid, "the name is empty").WithHint("use letters, digits, '.', '_' and '-'")
	}
	if len(s) > MaxName {
		return Errorf(Invalid, "the name %.20q… is %d bytes long", s, len(s)).WithHint(fmt.Sprintf("at most %d are allowed", MaxName))
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return Errorf(Invalid, "the name %q has %q at byte %d", s, string(s[i]), i+1).
				WithHint("use letters, digits, '.', '_' and '-', beginning with a letter or digit")
		}
	}
	return nil
}

// CheckBookmark returns an error of kind [Invalid] unless s can name a bookmark that is made now: it is a name, and [ParsePoint] reads it as that
// bookmark. Older releases made bookmarks of other names, such as latest; these are reached by their positions.
func CheckBookmark(s string) error {
	if err := CheckName(s); err != nil {
		return err
	}
	p, err := ParsePoint(s)
	switch {
	case err != nil:
		return err
	case p.Latest():
		return Errorf(Invalid, "%q means the newest point, and cannot name a bookmark", s).WithHint("choose another name")
	case p.Bookmark == "":
		return Errorf(Invalid, "%q is read as a time, and cannot name a bookmark", s).WithHint("choose another name, such as of-" + s)
	}
	return nil
}
