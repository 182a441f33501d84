-- +goose Up
-- How many jobs that have ended were forgotten, and how long they took all together: what was counted stays counted.
CREATE TABLE forgotten_jobs (
    owner TEXT NOT NULL,
    kind  TEXT NOT NULL,
    state TEXT NOT NULL,
    jobs  BIGINT NOT NULL,
    took  BIGINT NOT NULL,
    PRIMARY KEY (owner, kind, state)
);

-- +goose Down
DROP TABLE forgotten_jobs;
