-- An event is of the feed in whose time it was used: it is sent also when that one has ended, until it is dropped.
ALTER TABLE usage_feed
    ADD COLUMN dropped_at TIMESTAMP WITH TIME ZONE,
    -- Events that were left then.
    ADD COLUMN dropped BIGINT,
    ADD CONSTRAINT usage_feed_dropped_check
        CHECK ((dropped_at IS NULL) = (dropped IS NULL) AND (dropped_at IS NULL OR ended_at IS NOT NULL));
ALTER TABLE usage_outbox ADD COLUMN feed_id BIGINT;
-- Until now all went to the newest one.
UPDATE usage_outbox SET feed_id = (SELECT max(id) FROM usage_feed);
ALTER TABLE usage_outbox ALTER COLUMN feed_id SET NOT NULL;
DROP INDEX usage_outbox_waiting;
CREATE INDEX usage_outbox_waiting ON usage_outbox (feed_id, place, id) WHERE state = 'waiting';
DROP INDEX usage_outbox_left;
CREATE INDEX usage_outbox_left ON usage_outbox (feed_id, state, id) WHERE state <> 'waiting';
DROP INDEX usage_outbox_folding;
CREATE UNIQUE INDEX usage_outbox_folding
    ON usage_outbox (feed_id, organization_id, at, tenant_id, service_id, model, currency) WHERE folding;
