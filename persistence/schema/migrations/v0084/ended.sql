-- Since when every ledger and the journal have their rows here: null where one of them was never archived or dropped.
CREATE FUNCTION all_kept_since() RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN count(*) = 4 THEN min(since) END FROM kept_since
     WHERE ledger IN ('token_ledger', 'credit_transaction', 'feature_usage', 'call')
$$;

-- What explains a call is only added to, and taken away once the call and all it moved are gone from here. What an event
-- told of a plan that had ended, or of one before, stays: what that plan owes is proved by it.
CREATE FUNCTION keep_use_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.late_tokens = 0 AND OLD.quota_tokens = 0
       AND greatest(OLD.created_at, OLD.used_at) < all_kept_since() THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'use_event % stands: % refused', OLD.id, TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE ON use_event FOR EACH ROW EXECUTE FUNCTION keep_use_event();
CREATE INDEX use_event_created_at_idx ON use_event (created_at);

CREATE FUNCTION keep_rerating() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.created_at < all_kept_since() THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'rerating % stands: % refused', OLD.id, TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE ON rerating FOR EACH ROW EXECUTE FUNCTION keep_rerating();
CREATE INDEX rerating_created_at_idx ON rerating (created_at);
