-- Whose days a plan's cycles count, and the day they begin on: of a month, or of a week. Without one a month begins on the
-- day of the tenant's subscription, a week on Monday.
ALTER TABLE token_plan
    ADD COLUMN time_zone TEXT DEFAULT 'UTC' NOT NULL CONSTRAINT token_plan_time_zone_check CHECK (time_zone <> ''),
    ADD COLUMN anchor_day BIGINT CONSTRAINT token_plan_anchor_day_check CHECK (anchor_day BETWEEN 1 AND 31);

-- What the counters are told of a zone's clocks: by how many ms they are before those of UTC, when they change next (ms, 0
-- never), and by how many they are then. Up to `tenant_id` its tenants were told; null is all of them.
CREATE TABLE zone_clock (
    time_zone TEXT NOT NULL,
    "offset" BIGINT NOT NULL,
    turns_at BIGINT NOT NULL,
    offset_after BIGINT NOT NULL,
    tenant_id BIGINT,
    CONSTRAINT zone_clock_pkey PRIMARY KEY (time_zone)
);
