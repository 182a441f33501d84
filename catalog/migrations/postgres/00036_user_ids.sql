-- +goose Up
-- Which of all who ever had a name a user is: what one has asked for is not a later one's. Empty, as of all that was there before: who had the name then.
ALTER TABLE users ADD COLUMN id TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN asker_id TEXT NOT NULL DEFAULT '';
ALTER TABLE workflows ADD COLUMN author_id TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE workflows DROP COLUMN author_id;
ALTER TABLE jobs DROP COLUMN asker_id;
ALTER TABLE users DROP COLUMN id;
