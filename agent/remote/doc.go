// Package remote connects a server with the agents of other hosts: over TLS 1.3, with certificates of the server's own
// authority at both ends. An agent dials out; nothing listens on its host.
//
// A host joins once. An administrator has the server make a [Token], brings it to the host, and [Join] trades it for an
// [Identity]: a key that never leaves the host, and a certificate that names it. The token holds the fingerprint of the authority, so
// the agent knows the right server from any other before it says a word of the secret. From then on the agent makes a connection for each thing that
// it wants ([Identity.Dial]): one on which the server calls it, and one for the stream of each tap. Processes that
// outlive the agent dial by what is in the identity's directory ([DialFrom]): for each disk of the server that is shown on the host. [Server] accepts them, and asks its owner
// whether that host, with that certificate, may still come in, and have what it asks for: to revoke one is to say no.
//
// docs/format/agent.md has the bytes.
package remote
