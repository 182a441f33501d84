package script

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark"
)

// scripts makes a directory that only root can write to, with the programs given.
func scripts(t *testing.T, programs map[string]string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: scripts of others are refused")
	}
	dir := t.TempDir()
	for name, text := range programs {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestRun(t *testing.T) {
	dir := scripts(t, map[string]string{Pre: "echo $WHAT > " + filepath.Join(t.TempDir(), "x") + "; echo broken >&2; exit 3"})
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), Pre, time.Minute, "WHAT=this"); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a failure is %v", err)
	}
	if err := s.Run(t.Context(), Post, time.Minute); err != nil {
		t.Errorf("a program that is not there: %v", err)
	}
}

// What a program started is killed with it.
func TestHangs(t *testing.T) {
	dir := scripts(t, map[string]string{Pre: "sleep 1000 & sleep 1000"})
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := s.Run(t.Context(), Pre, 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("it hung, and the error is %v", err)
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("it was let hang for %v", took)
	}
}

func TestRights(t *testing.T) {
	for what, spoil := range map[string]func(dir string) error{
		"writable program":    func(dir string) error { return os.Chmod(filepath.Join(dir, Pre), 0o722) },
		"writable directory":  func(dir string) error { return os.Chmod(dir, 0o777) },
		"another's program":   func(dir string) error { return os.Chown(filepath.Join(dir, Pre), 1, 1) },
		"another's directory": func(dir string) error { return os.Chown(dir, 1, 1) },
		"no program":          func(dir string) error { return os.Chmod(filepath.Join(dir, Pre), 0o600) },
		"nothing":             func(dir string) error { return os.Remove(filepath.Join(dir, Pre)) },
		"a link": func(dir string) error {
			if err := os.Rename(filepath.Join(dir, Pre), filepath.Join(dir, "x")); err != nil {
				return err
			}
			return os.Symlink("x", filepath.Join(dir, Pre))
		},
	} {
		dir := scripts(t, map[string]string{Pre: "true"})
		s, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); err == nil {
			t.Errorf("%s: loaded", what)
		}
		if err := s.Run(t.Context(), Pre, time.Minute); err == nil && strings.Contains(what, "program") && what != "nothing" {
			t.Errorf("%s: run", what)
		}
	}
	if _, err := Load("pre"); tidemark.KindOf(err) != tidemark.Invalid {
		t.Errorf("a relative path: %v", err)
	}
	if _, err := Load("/no/such"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// TestRunFile holds that a file of a directory is run by the same rules, and that what it says is not in its error.
func TestRunFile(t *testing.T) {
	dir := scripts(t, map[string]string{"says": "echo $WORD; echo secret >&2; exit 3", "hangs": "sleep 60 & wait"})
	if err := os.WriteFile(filepath.Join(dir, "plain"), []byte("true"), 0o644); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	err := RunFile(t.Context(), dir, "says", time.Minute, &said, "WORD=hello")
	if err == nil || strings.Contains(err.Error(), "secret") || said.String() != "hello\nsecret\n" {
		t.Errorf("%q, %v", said.String(), err)
	}
	begun := time.Now()
	if err := RunFile(t.Context(), dir, "hangs", 50*time.Millisecond, &said); err == nil || time.Since(begun) > 10*time.Second {
		t.Errorf("it hangs: %v", err)
	}
	for name, kind := range map[string]tidemark.Kind{"plain": tidemark.Invalid, "../x": tidemark.Invalid, "none": tidemark.NotFound} {
		if err := RunFile(t.Context(), dir, name, time.Minute, &said); tidemark.KindOf(err) != kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "says"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := RunFile(t.Context(), dir, "says", time.Minute, &said); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("a program that others can change: %v", err)
	}
}

// A program is run by its name, and says how it ended; what others can change, or is elsewhere, is not run.
func TestProgram(t *testing.T) {
	dir := scripts(t, map[string]string{"good": "echo first; echo \"$WHAT\"", "bad": "echo sorry; exit 3", "loud": "seq 1 200000", "slow": "sleep 1000"})
	if said, err := Program(t.Context(), dir, "good", time.Minute, "WHAT=a $(b) 'c"); err != nil || said != "a $(b) 'c" {
		t.Errorf("%q, %v", said, err)
	}
	if said, err := Program(t.Context(), dir, "loud", time.Minute); err != nil || said != "200000" {
		t.Errorf("%q, %v", said, err)
	}
	if _, err := Program(t.Context(), dir, "bad", time.Minute); err == nil || !strings.Contains(err.Error(), "exit status 3: sorry") {
		t.Errorf("%v", err)
	}
	if _, err := Program(t.Context(), dir, "slow", 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("%v", err)
	}
	for name, want := range map[string]tidemark.Kind{"missing": tidemark.NotFound, "../good": tidemark.Invalid, "": tidemark.Invalid} {
		if _, err := Program(t.Context(), dir, name, time.Minute); tidemark.KindOf(err) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "good"), 0o722); err != nil {
		t.Fatal(err)
	}
	if _, err := Program(t.Context(), dir, "good", time.Minute); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("%v", err)
	}
	if _, err := Find(filepath.Join(dir, "nowhere"), "good"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("%v", err)
	}
}
