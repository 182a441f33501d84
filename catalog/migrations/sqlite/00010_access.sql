-- +goose Up
CREATE TABLE users (
    name     TEXT NOT NULL PRIMARY KEY,
    display  TEXT NOT NULL,
    password TEXT NOT NULL,
    issuer   TEXT NOT NULL,
    subject  TEXT NOT NULL,
    disabled BOOLEAN NOT NULL,
    created  BIGINT NOT NULL
);
CREATE UNIQUE INDEX one_user_of_a_provider ON users (issuer, subject) WHERE issuer <> '';
CREATE TABLE user_groups (
    name    TEXT NOT NULL PRIMARY KEY,
    created BIGINT NOT NULL
);
CREATE TABLE memberships (
    group_name TEXT NOT NULL REFERENCES user_groups (name) ON DELETE CASCADE,
    user_name  TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    provided   BOOLEAN NOT NULL,
    PRIMARY KEY (group_name, user_name, provided)
);
CREATE INDEX memberships_of_a_user ON memberships (user_name);
CREATE TABLE grants (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    user_name    TEXT REFERENCES users (name) ON DELETE CASCADE,
    group_name   TEXT REFERENCES user_groups (name) ON DELETE CASCADE,
    role         TEXT NOT NULL,
    scope_kind   TEXT NOT NULL,
    scope_names  TEXT NOT NULL,
    limits       TEXT NOT NULL,
    created      BIGINT NOT NULL,
    CHECK ((user_name IS NULL) <> (group_name IS NULL))
);
CREATE INDEX grants_of_a_user ON grants (user_name);
CREATE INDEX grants_of_a_group ON grants (group_name);
CREATE TABLE tokens (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    user_name    TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    name         TEXT NOT NULL,
    hash         TEXT NOT NULL UNIQUE,
    roles        TEXT NOT NULL,
    applications TEXT NOT NULL,
    created      BIGINT NOT NULL,
    expires      BIGINT NOT NULL,
    used         BIGINT NOT NULL,
    UNIQUE (user_name, name)
);
CREATE TABLE sessions (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    user_name TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    hash      TEXT NOT NULL UNIQUE,
    method    TEXT NOT NULL,
    address   TEXT NOT NULL,
    created   BIGINT NOT NULL,
    expires   BIGINT NOT NULL,
    used      BIGINT NOT NULL,
    idle      BIGINT NOT NULL
);
CREATE INDEX sessions_of_a_user ON sessions (user_name);
CREATE TABLE objects (
    kind      TEXT NOT NULL,
    name      TEXT NOT NULL,
    owner     TEXT REFERENCES users (name),
    source    TEXT NOT NULL,
    host      TEXT NOT NULL,
    published BOOLEAN NOT NULL,
    PRIMARY KEY (kind, name)
);
CREATE INDEX objects_of_an_owner ON objects (owner);
CREATE TABLE object_via (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    seq  BIGINT NOT NULL,
    via  TEXT NOT NULL,
    PRIMARY KEY (kind, name, seq),
    FOREIGN KEY (kind, name) REFERENCES objects (kind, name) ON DELETE CASCADE
);
CREATE TABLE object_members (
    kind   TEXT NOT NULL,
    name   TEXT NOT NULL,
    member TEXT NOT NULL,
    PRIMARY KEY (kind, name, member),
    FOREIGN KEY (kind, name) REFERENCES objects (kind, name) ON DELETE CASCADE
);
CREATE TABLE shares (
    kind       TEXT NOT NULL,
    name       TEXT NOT NULL,
    user_name  TEXT REFERENCES users (name) ON DELETE CASCADE,
    group_name TEXT REFERENCES user_groups (name) ON DELETE CASCADE,
    FOREIGN KEY (kind, name) REFERENCES objects (kind, name) ON DELETE CASCADE,
    CHECK ((user_name IS NULL) <> (group_name IS NULL))
);
CREATE INDEX shares_of_an_object ON shares (kind, name);
CREATE TABLE audit (
    seq       BIGINT NOT NULL PRIMARY KEY,
    at        BIGINT NOT NULL,
    user_name TEXT NOT NULL,
    method    TEXT NOT NULL,
    token_id  BIGINT NOT NULL,
    address   TEXT NOT NULL,
    request   TEXT NOT NULL,
    action    TEXT NOT NULL,
    kind      TEXT NOT NULL,
    object    TEXT NOT NULL,
    outcome   TEXT NOT NULL,
    detail    TEXT NOT NULL,
    previous  TEXT NOT NULL,
    hash      TEXT NOT NULL
);
CREATE INDEX audit_of_a_user ON audit (user_name, seq);
CREATE INDEX audit_of_an_object ON audit (object, seq);
CREATE TABLE audit_head (
    id   BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    seq  BIGINT NOT NULL,
    hash TEXT NOT NULL
);
INSERT INTO audit_head (id, seq, hash) VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');
-- +goose StatementBegin
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit is only appended to');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit is only appended to');
END;
-- +goose StatementEnd

-- +goose Down
DROP TABLE audit_head;
DROP TABLE audit;
DROP TABLE shares;
DROP TABLE object_members;
DROP TABLE object_via;
DROP TABLE objects;
DROP TABLE sessions;
DROP TABLE tokens;
DROP TABLE grants;
DROP TABLE memberships;
DROP TABLE user_groups;
DROP TABLE users;
