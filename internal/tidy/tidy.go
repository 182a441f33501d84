// Package tidy holds the rules of this repository as tests: which package may
// import which, who may rename files, and that every package says what it
// provides. It has no code of its own.
package tidy
