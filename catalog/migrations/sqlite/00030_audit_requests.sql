-- +goose Up
-- By it is found whether a record that was kept while the catalog was away had been appended all the same.
CREATE INDEX audit_of_a_request ON audit (request);

-- +goose Down
DROP INDEX audit_of_a_request;
