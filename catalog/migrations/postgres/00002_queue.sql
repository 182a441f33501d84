-- +goose Up
-- What belongs to one data directory carries its owner: the identity of that directory.
CREATE TABLE owned_things (
    owner   TEXT NOT NULL,
    kind    TEXT NOT NULL,
    name    TEXT NOT NULL,
    body    TEXT NOT NULL,
    changed BIGINT NOT NULL,
    PRIMARY KEY (owner, kind, name)
);
INSERT INTO owned_things (owner, kind, name, body, changed) SELECT '', kind, name, body, changed FROM things;
DROP TABLE things;
ALTER TABLE owned_things RENAME TO things;
ALTER TABLE events ADD COLUMN owner TEXT NOT NULL DEFAULT '';
CREATE INDEX events_of_owner ON events (owner, id);

-- Jobs become a queue.
ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN priority BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN queued BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN not_before BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN attempts BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN max_attempts BIGINT NOT NULL DEFAULT 1;
ALTER TABLE jobs ADD COLUMN holder TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN lease_end BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN cancelling BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN asked_by TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN origin TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN parent BIGINT NOT NULL DEFAULT 0;
UPDATE jobs SET attempts = 1, queued = created;
DROP INDEX one_running_job;
CREATE UNIQUE INDEX one_running_job ON jobs (owner, application) WHERE state = 'running' AND application <> '';
CREATE INDEX waiting_jobs ON jobs (owner, priority DESC, id) WHERE state = 'queued';
CREATE INDEX running_jobs ON jobs (host) WHERE state = 'running';
CREATE INDEX jobs_of_owner ON jobs (owner, id);
