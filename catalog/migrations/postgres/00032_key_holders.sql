-- +goose Up
-- Which request holds a key. Who was it once, and has let go or was forgotten, changes nothing for who is it now.
ALTER TABLE answers ADD COLUMN holder TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE answers DROP COLUMN holder;
