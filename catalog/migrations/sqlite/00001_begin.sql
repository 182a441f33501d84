-- +goose Up
CREATE TABLE things (
    kind    TEXT NOT NULL,
    name    TEXT NOT NULL,
    body    TEXT NOT NULL,
    changed BIGINT NOT NULL,
    PRIMARY KEY (kind, name)
);
CREATE TABLE jobs (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    kind        TEXT NOT NULL,
    application TEXT NOT NULL,
    state       TEXT NOT NULL,
    step        TEXT NOT NULL,
    done        BIGINT NOT NULL,
    total       BIGINT NOT NULL,
    unit        TEXT NOT NULL,
    args        TEXT NOT NULL,
    undo        TEXT NOT NULL,
    result      TEXT NOT NULL,
    error       TEXT NOT NULL,
    created     BIGINT NOT NULL,
    started     BIGINT NOT NULL,
    finished    BIGINT NOT NULL
);
CREATE UNIQUE INDEX one_running_job ON jobs (application) WHERE state = 'running' AND application <> '';
CREATE TABLE events (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    at          BIGINT NOT NULL,
    level       TEXT NOT NULL,
    application TEXT NOT NULL,
    message     TEXT NOT NULL
);

-- +goose Down
DROP TABLE events;
DROP TABLE jobs;
DROP TABLE things;
