-- +goose Up
-- The API token that a version was applied by: it narrows what runs of its schedule may do.
ALTER TABLE workflows ADD COLUMN token TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE workflows DROP COLUMN token;
