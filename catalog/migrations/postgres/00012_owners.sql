-- +goose Up
-- Whose something is belongs to one data directory. Nothing was anybody's before: there was no way in but the socket.
DROP TABLE shares;
DROP TABLE object_members;
DROP TABLE object_via;
DROP TABLE objects;
CREATE TABLE objects (
    directory TEXT NOT NULL,
    kind      TEXT NOT NULL,
    name      TEXT NOT NULL,
    owner     TEXT REFERENCES users (name),
    source    TEXT NOT NULL,
    PRIMARY KEY (directory, kind, name)
);
CREATE INDEX objects_of_an_owner ON objects (owner);
CREATE TABLE object_via (
    directory TEXT NOT NULL,
    kind      TEXT NOT NULL,
    name      TEXT NOT NULL,
    seq       BIGINT NOT NULL,
    via       TEXT NOT NULL,
    PRIMARY KEY (directory, kind, name, seq),
    FOREIGN KEY (directory, kind, name) REFERENCES objects (directory, kind, name) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE TABLE shares (
    directory  TEXT NOT NULL,
    kind       TEXT NOT NULL,
    name       TEXT NOT NULL,
    user_name  TEXT REFERENCES users (name) ON DELETE CASCADE,
    group_name TEXT REFERENCES user_groups (name) ON DELETE CASCADE,
    FOREIGN KEY (directory, kind, name) REFERENCES objects (directory, kind, name) ON DELETE CASCADE ON UPDATE CASCADE,
    CHECK ((user_name IS NULL) <> (group_name IS NULL))
);
CREATE INDEX shares_of_an_object ON shares (directory, kind, name);

-- +goose Down
DROP TABLE shares;
DROP TABLE object_via;
DROP TABLE objects;
CREATE TABLE objects (kind TEXT NOT NULL, name TEXT NOT NULL, owner TEXT REFERENCES users (name), source TEXT NOT NULL, host TEXT NOT NULL, published BOOLEAN NOT NULL, PRIMARY KEY (kind, name));
CREATE TABLE object_via (kind TEXT NOT NULL, name TEXT NOT NULL, seq BIGINT NOT NULL, via TEXT NOT NULL, PRIMARY KEY (kind, name, seq), FOREIGN KEY (kind, name) REFERENCES objects (kind, name) ON DELETE CASCADE);
CREATE TABLE object_members (kind TEXT NOT NULL, name TEXT NOT NULL, member TEXT NOT NULL, PRIMARY KEY (kind, name, member), FOREIGN KEY (kind, name) REFERENCES objects (kind, name) ON DELETE CASCADE);
CREATE TABLE shares (kind TEXT NOT NULL, name TEXT NOT NULL, user_name TEXT REFERENCES users (name) ON DELETE CASCADE, group_name TEXT REFERENCES user_groups (name) ON DELETE CASCADE, FOREIGN KEY (kind, name) REFERENCES objects (kind, name) ON DELETE CASCADE);
