-- +goose Up
CREATE TABLE answers (
    owner       TEXT NOT NULL,
    key         TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    server      TEXT NOT NULL,
    status      BIGINT NOT NULL,
    media       TEXT NOT NULL,
    location    TEXT NOT NULL,
    body        TEXT NOT NULL,
    asked       BIGINT NOT NULL,
    PRIMARY KEY (owner, key)
);
CREATE INDEX answers_by_age ON answers (asked);

-- +goose Down
DROP TABLE answers;
