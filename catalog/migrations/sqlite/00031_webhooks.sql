-- +goose Up
-- Where events are posted to, and how far each has come.
CREATE TABLE webhooks (
    owner        TEXT NOT NULL,
    name         TEXT NOT NULL,
    url          TEXT NOT NULL,
    level        TEXT NOT NULL,
    applications TEXT NOT NULL,
    secret       TEXT NOT NULL,
    disabled     BOOLEAN NOT NULL,
    author       TEXT NOT NULL,
    created      BIGINT NOT NULL,
    seen         BIGINT NOT NULL,
    missed       BIGINT NOT NULL,
    delivered    BIGINT NOT NULL,
    last         BIGINT NOT NULL,
    failed       BIGINT NOT NULL,
    failing      BIGINT NOT NULL,
    error        TEXT NOT NULL,
    PRIMARY KEY (owner, name)
);

-- +goose Down
DROP TABLE webhooks;
