-- +goose Up
-- What a job is decided about again by when it begins. Empty, as of older jobs: by nothing.
ALTER TABLE jobs ADD COLUMN terms TEXT NOT NULL DEFAULT '';
-- Which application an event is about: its name can be another's by now. Empty, as of older events: whoever had the name then.
ALTER TABLE events ADD COLUMN first_id TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE events DROP COLUMN first_id;
ALTER TABLE jobs DROP COLUMN terms;
