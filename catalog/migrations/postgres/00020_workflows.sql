-- +goose Up
-- A change of a workflow is a new version; none is ever changed.
CREATE TABLE workflows (
    owner    TEXT NOT NULL,
    name     TEXT NOT NULL,
    version  BIGINT NOT NULL,
    document TEXT NOT NULL,
    author   TEXT NOT NULL,
    created  BIGINT NOT NULL,
    removed  BIGINT NOT NULL,
    PRIMARY KEY (owner, name, version)
);
-- Which steps of a run have begun, and how they ended.
CREATE TABLE workflow_steps (
    owner    TEXT NOT NULL,
    run      BIGINT NOT NULL,
    step     TEXT NOT NULL,
    state    TEXT NOT NULL,
    result   TEXT NOT NULL,
    error    TEXT NOT NULL,
    started  BIGINT NOT NULL,
    finished BIGINT NOT NULL,
    PRIMARY KEY (owner, run, step)
);
-- A job may be one part of its parent. It is there once.
ALTER TABLE jobs ADD COLUMN part TEXT NOT NULL DEFAULT '';
CREATE UNIQUE INDEX one_job_of_a_part ON jobs (owner, parent, part) WHERE part <> '';
CREATE INDEX runs_of_workflows ON jobs (owner, application, id) WHERE kind = 'workflow';

-- +goose Down
DROP INDEX runs_of_workflows;
DROP INDEX one_job_of_a_part;
ALTER TABLE jobs DROP COLUMN part;
DROP TABLE workflow_steps;
DROP TABLE workflows;
