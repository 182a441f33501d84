-- +goose Up
-- Which application a job is for: its name can be another's by the time the job begins. Empty, as of older jobs: whoever has the name.
ALTER TABLE jobs ADD COLUMN first_id TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE jobs DROP COLUMN first_id;
