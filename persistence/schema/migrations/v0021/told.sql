-- What was told of each account of a budget in a window, and what its pace is counted from: once a window is once, also
-- after a restart. Rows of windows that are over go.
CREATE TABLE budget_told (
    budget_id BIGINT NOT NULL,
    start TIMESTAMP WITH TIME ZONE NOT NULL,
    value TEXT NOT NULL,
    -- The highest part of the amount, whether it was exceeded, and whether its end was foreseen.
    part NUMERIC DEFAULT 0 NOT NULL,
    exceeded BOOLEAN DEFAULT false NOT NULL,
    foreseen BOOLEAN DEFAULT false NOT NULL,
    before_used BIGINT,
    before_at TIMESTAMP WITH TIME ZONE,
    seen_used BIGINT,
    seen_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT budget_told_pkey PRIMARY KEY (budget_id, start, value),
    CONSTRAINT budget_told_before_check CHECK ((before_used IS NULL) = (before_at IS NULL)),
    CONSTRAINT budget_told_seen_check CHECK ((seen_used IS NULL) = (seen_at IS NULL))
);

-- What waits is looked for by webhook, so that one that does not answer keeps no other waiting.
CREATE INDEX webhook_delivery_waiting_idx ON webhook_delivery (webhook_id, next_attempt_at) WHERE state = 'pending';
DROP INDEX webhook_delivery_due_idx;
