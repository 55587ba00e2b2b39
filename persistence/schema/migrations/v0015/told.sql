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

-- Since when the journal has its calls: what is older was dropped.
CREATE TABLE call_kept (
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT call_kept_pkey PRIMARY KEY (since)
);

-- Drops whole months of the journal that end before a moment, for a keeper that owns nothing: it runs with its owner's
-- rights and finds nothing by the caller's search_path. It never waits long for who writes, and the last month is safe.
CREATE FUNCTION drop_calls(before timestamptz) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    home CONSTANT text := :home;
    month CONSTANT timestamptz := date_trunc('month', least(before, now() - interval '31 days'), 'UTC');
    child text;
BEGIN
    IF before IS NULL THEN
        RAISE EXCEPTION 'calls are dropped before a moment' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(7801, 2);
    FOR child IN SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
                  WHERE i.inhparent = format('%I.call', home)::regclass AND c.relname ~ '^call_y\d{4}m\d{2}$'
                    AND make_timestamptz(substr(c.relname, 7, 4)::integer, substr(c.relname, 12, 2)::integer, 1, 0, 0, 0, 'UTC')
                        < month
                  ORDER BY 1 LOOP
        EXECUTE format('DROP TABLE %I.%I', home, child);
        RETURN NEXT child;
    END LOOP;
    EXECUTE format('DELETE FROM %I.call_default WHERE created_at < %L', home, month);
    EXECUTE format('DELETE FROM %I.call_kept WHERE since < %L', home, month);
    EXECUTE format('INSERT INTO %I.call_kept SELECT %L WHERE NOT EXISTS (SELECT FROM %I.call_kept)', home, month, home);
END $$;

-- Calls that a level of the roll-ups does not add up to, either way. Of refused ones there are as many rows as are told,
-- never more than are counted. Nothing is said of a time whose calls were dropped.
CREATE OR REPLACE VIEW invariant_usage_adds_up AS
    SELECT 'organization:' || organization_id AS account, NULL::bigint AS seq,
           format('%s of %s: %s calls and %s refused in the journal, %s and %s in its roll-up', span, start, c.requests,
                  c.refused, r.requests, r.refused) AS detail
      FROM (SELECT s.span, date_trunc(s.unit, created_at, 'UTC') AS start, organization_id,
                   count(*) FILTER (WHERE NOT refused) AS requests, count(*) FILTER (WHERE refused) AS refused,
                   sum(tokens) AS tokens, sum(credits) AS credits, sum(units) AS units, coalesce(sum(cost), 0) AS cost
              FROM call, (VALUES ('hour', 'hour'), ('day', 'day'), ('week', 'week'), ('month', 'month'),
                                 ('team_hour', 'hour'), ('team_day', 'day')) AS s (span, unit)
             GROUP BY 1, 2, 3) AS c
      FULL JOIN (SELECT span, start, organization_id, sum(requests) AS requests, sum(refused) AS refused,
                        sum(tokens) AS tokens, sum(credits) AS credits, sum(units) AS units, sum(cost) AS cost
                   FROM usage_rollup GROUP BY 1, 2, 3) AS r USING (span, start, organization_id)
     WHERE start >= coalesce((SELECT max(since) FROM call_kept), '-infinity')
       AND ((coalesce(c.requests, 0), coalesce(c.tokens, 0), coalesce(c.credits, 0), coalesce(c.units, 0), coalesce(c.cost, 0))
            IS DISTINCT FROM (r.requests, r.tokens, r.credits, r.units, r.cost)
            OR coalesce(c.refused, 0) > r.refused);
