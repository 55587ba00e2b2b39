-- Days of which request ids were given by a gateway's clock that was ahead of Redis' by more than a day: since when
-- requests of these ids have rows. Of all other ids that say a moment, no row is more than a day before it.
CREATE TABLE clock_ahead (
    day DATE NOT NULL CONSTRAINT clock_ahead_pkey PRIMARY KEY,
    since TIMESTAMP WITH TIME ZONE NOT NULL
);
-- A settlement that came late, and a person found in no archive.
ALTER TABLE control_write DROP CONSTRAINT control_write_verb_check, ADD CONSTRAINT control_write_verb_check
    CHECK (verb IN ('recharge', 'reset', 'adjust', 'block', 'unblock', 'plan', 'credits', 'define', 'budget', 'use', 'amend', 'late'));
