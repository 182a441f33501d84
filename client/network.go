package client

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/url"
	"strings"
	"time"

	"tidemark"
)

// serverName is what the certificate of a server is for that has its own authority, wherever it listens.
const serverName = "tidemark-server"

// Place says where a server is on a network, and who asks.
type Place struct {
	URL string // https://HOST:PORT
	// Authority is the certificate of the server's authority, as PEM. Without it, the server has to have a certificate for its host's name
	// that the system trusts.
	Authority []byte
	// Secret is that of an API token or a session; empty: only what everybody may be told can be asked for.
	Secret string
}

// NewRemote returns a client of a server on a network. Nothing is connected yet.
func NewRemote(p Place) (*Client, error) {
	u, err := url.Parse(p.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		return nil, tidemark.Errorf(tidemark.Invalid, "the server's URL cannot be used").WithHint("write https://HOST:PORT")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if len(p.Authority) > 0 {
		config.RootCAs, config.ServerName = x509.NewCertPool(), serverName
		if !config.RootCAs.AppendCertsFromPEM(p.Authority) {
			return nil, tidemark.Errorf(tidemark.Invalid, "the certificate of the server's authority cannot be read").WithHint("`tidemark api authority` at the server's socket prints it")
		}
	}
	t := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute, Proxy: http.ProxyFromEnvironment}
	return &Client{at: "https://" + u.Host, base: "https://" + u.Host, secret: p.Secret, http: &http.Client{Transport: t, CheckRedirect: noRedirect}}, nil
}

// noRedirect keeps the secret from being sent anywhere else.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
