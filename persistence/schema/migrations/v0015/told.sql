-- Calls that were refused have rows in the journal, so many of them, and are counted apart from those that were admitted.
ALTER TABLE call ADD COLUMN refused BOOLEAN DEFAULT false NOT NULL;

-- How far each gateway worker's batches of refused calls are stored: they come in the order of their numbers.
CREATE TABLE refused_batch (
    worker UUID NOT NULL CONSTRAINT refused_batch_pkey PRIMARY KEY,
    number BIGINT NOT NULL,
    stored_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL
);

-- What a use was for, in every ledger.
ALTER TABLE token_ledger ADD COLUMN content_id BIGINT, ADD COLUMN project_id BIGINT, ADD COLUMN feature_version TEXT;
