-- Which models and projects of an organization's day are told apart in its roll-ups: the first ones, up to a maximum.
-- Calls of others are added up under one name; the journal has the name of each.
CREATE TABLE usage_name (
    organization_id BIGINT NOT NULL,
    day DATE NOT NULL,
    kind TEXT NOT NULL CONSTRAINT usage_name_kind_check CHECK (kind IN ('model', 'project')),
    name TEXT NOT NULL,
    CONSTRAINT usage_name_pkey PRIMARY KEY (organization_id, day, kind, name)
);
INSERT INTO usage_name
SELECT organization_id, (start AT TIME ZONE 'UTC')::date, 'model', model FROM usage_rollup
 WHERE span = 'team_day' AND model <> ''
UNION
SELECT organization_id, (start AT TIME ZONE 'UTC')::date, 'project', project_id::text FROM usage_rollup
 WHERE span = 'team_day' AND project_id >= 0;
