-- +goose Up
-- Which profile the application of a job has, so that not more of them begin than that allows. Empty: none.
ALTER TABLE jobs ADD COLUMN profile TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE jobs DROP COLUMN profile;
