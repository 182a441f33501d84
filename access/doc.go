// Package access says who may do what.
//
// Four words carry it. A [Principal] is somebody who asks, with the groups that
// he is in and the way he came. An [Action] is what is asked for, such as
// application.clone, and an [Object] what it is asked of. A [Grant] gives a user
// or a group a [Role] over a [Scope]. [Decide] answers from these four alone,
// and says why; [Visible] gives the same answer for all objects at once, as a
// [Filter] that a database can evaluate.
//
// Both are pure functions: no clock, no file, no network. What they need is
// read from the catalog by their caller. So the matrix of all roles, actions
// and objects is a test that takes milliseconds, and holds.
//
// # The rules
//
// What no grant allows is denied. A role, scope, action or sort of object that
// is not known allows nothing, so a row that a newer version wrote gives no
// rights to an older one.
//
// Rights only add up: no grant takes away what another gave. What narrows is
// the API [Token], whose rights are those of its user that are also the
// token's.
//
// A role has a [Level] for each action. [All] is everything in the scope, and
// [Own] what belongs to the principal. [Open] lies between: his own, what was
// shared with him or published, and what belongs to nobody, as a protected
// application does. The scope holds for all three: whoever shares a clone of
// orders shares it with those who have rights over orders.
//
// A role that is limited, such as developer, has [Limits] in its grant as well:
// which points may be taken, which is a part of the decision, and how many
// copies, how large, how long and where, which is [Decision.Within].
//
// Whoever opens the server's own unix socket may do everything. It is the way
// in when all else is lost, and the file system guards it.
//
// # Secrets
//
// [Passwords] hashes and compares passwords, in bounded memory. [NewSecret]
// makes the secrets of tokens and sessions, of which only the [Secret.Hash] is
// kept. [Limiter] slows down those who guess. Logins by OpenID Connect are
// [tidemark/access/oidc].
//
// # The audit
//
// [AuditRecord] is a line of who did what, and [AuditChain] holds lines together
// by hashes so that a change to one of them shows; a [Checkpoint], kept
// elsewhere, shows also that lines were cut off the end.
//
// DESIGN.md has the invariants, and what they are to withstand.
package access
