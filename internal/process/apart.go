package process

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
)

// Apart has a process of this very program, started with one argument, do one thing: it reads a request, as JSON, from its
// standard input, and what it writes to its standard output is decoded as its answer. Without an answer it is an error. It has the files as its
// descriptors from 3 on.
//
// It is for what may wait in the kernel as long as it likes. A thread that waits there cannot be killed, and what its process has
// open stays open. This process has nothing else of ours open, so ours can end whatever it waits for.
func Apart(arg string, request, answer any, files ...*os.File) error {
	in, err := json.Marshal(request)
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe") // what we run, also when its file was replaced meanwhile
	cmd.Args = []string{os.Args[0], arg}
	cmd.Dir, cmd.ExtraFiles = "/", files
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, os.Stderr
	err = cmd.Run()
	if jerr := json.Unmarshal(out.Bytes(), answer); jerr != nil {
		return fmt.Errorf("a process to %s gave no answer: %w (%w)", arg, jerr, err)
	}
	return nil
}
