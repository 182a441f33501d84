package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tidemark"
	"tidemark/client"
	"tidemark/internal/vfs"
)

// credentials are what a login leaves for the commands after it.
type credentials struct {
	Server    string `json:"server"`
	Authority string `json:"authority,omitempty"` // PEM
	Secret    string `json:"secret"`
}

func credentialsPath() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", tidemark.Errorf(tidemark.Unavailable, "it is not known where to keep a login: %w", err).WithHint("set HOME")
	}
	return filepath.Join(dir, "tidemark", "credentials.json"), nil
}

// readCredentials returns what was kept; nothing, if there was no login.
func readCredentials() (k credentials, err error) {
	path, err := credentialsPath()
	if err != nil {
		return k, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &k)
	}
	if err != nil {
		return k, tidemark.Errorf(tidemark.Invalid, "the login in %s cannot be read: %w", path, err).WithHint("remove the file, and log in again")
	}
	return k, nil
}

// keep writes credentials where nobody else can read them.
func (k credentials) keep() error {
	path, err := credentialsPath()
	if err != nil {
		return err
	}
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := vfs.WriteFile(vfs.OS, path, data); err != nil {
		return err
	}
	return os.Chmod(path, 0o600)
}

func forgetCredentials() error {
	path, err := credentialsPath()
	if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// place is the server on a network that was named, with --server or by the environment, or logged in to; none, if that was none.
func place() (p client.Place, err error) {
	p.URL = cmp.Or(flags.server, os.Getenv("TIDEMARK_SERVER"))
	ca, token := cmp.Or(flags.ca, os.Getenv("TIDEMARK_CA")), cmp.Or(flags.tokenFile, os.Getenv("TIDEMARK_TOKEN_FILE"))
	k, err := readCredentials()
	if err != nil {
		return p, err
	}
	if p.URL == "" && flags.socket == "" && os.Getenv("TIDEMARK_SOCKET") == "" {
		p.URL = k.Server
	}
	if p.URL == "" {
		return p, nil
	}
	if p.URL == k.Server {
		p.Secret, p.Authority = k.Secret, []byte(k.Authority)
	}
	if ca != "" {
		if p.Authority, err = os.ReadFile(ca); err != nil {
			return p, tidemark.Errorf(tidemark.Invalid, "the certificate of the server's authority cannot be read: %w", err)
		}
	}
	if token != "" {
		if p.Secret, err = readSecret(token); err != nil {
			return p, err
		}
	}
	return p, nil
}

// giveSecret prints a secret that ask asks for or, with a path, writes it to a file that must not be there yet, since that may be open to
// others. The file is made first: who cannot have it has nothing made that nobody knows the secret of. lost is what can be done about a
// secret that could not be written after all.
func giveSecret(path, lost string, ask func() (secret string, err error)) error {
	if path == "" {
		secret, err := ask()
		if err == nil {
			fmt.Println(secret)
		}
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return tidemark.Errorf(tidemark.Invalid, "the file for the token cannot be made: %w", err).WithHint("name a file that is not there yet")
	}
	secret, err := ask()
	if err != nil {
		_ = f.Close()
		_ = os.Remove(path) // what is told is why there is no secret
		return err
	}
	_, err = fmt.Fprintln(f, secret)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return tidemark.Errorf(tidemark.Unavailable, "the token was made, and cannot be written: %w", err).WithHint(lost)
	}
	return nil
}

// readSecret reads a file that holds a secret, and that others cannot read.
func readSecret(path string) (string, error) {
	err := closedToOthers(path)
	if tidemark.KindOf(err) == tidemark.Invalid {
		return "", err
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return "", tidemark.Errorf(tidemark.Invalid, "the file with the token cannot be read: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// closedToOthers makes sure that nobody but its user has access to a file with a secret.
func closedToOthers(path string) error {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		return tidemark.Errorf(tidemark.Invalid, "%s can be read by others", path).WithHint("chmod 600 " + path)
	}
	return err
}
