-- Since when a table that is kept for some time has its rows: what is older was dropped.
CREATE TABLE kept_since (
    ledger TEXT NOT NULL CONSTRAINT kept_since_pkey PRIMARY KEY,
    since TIMESTAMP WITH TIME ZONE NOT NULL
);
INSERT INTO kept_since SELECT 'call', max(since) FROM call_kept HAVING max(since) IS NOT NULL;

-- Drops whole months that end before a moment, of the journal or of hours of the roll-ups, for a keeper that owns nothing:
-- it runs with its owner's rights and finds nothing by the caller's search_path. It never waits long for who writes, and
-- the last month is safe. A transaction drops months of one table: more could wait for a report that waits for them.
DROP FUNCTION drop_calls(timestamptz);
CREATE FUNCTION drop_months(ledger text, before timestamptz) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    home CONSTANT text := :home;
    month CONSTANT timestamptz := date_trunc('month', least(before, now() - interval '31 days'), 'UTC');
    moment CONSTANT text := CASE ledger WHEN 'call' THEN 'created_at' ELSE 'start' END;
    child text;
BEGIN
    IF before IS NULL OR ledger IS NULL OR ledger NOT IN ('call', 'usage_rollup_hour', 'usage_rollup_team_hour') THEN
        RAISE EXCEPTION 'months before a moment are dropped, of calls or of hours' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(7801, 2);
    FOR child IN SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
                  WHERE i.inhparent = format('%I.%I', home, ledger)::regclass AND c.relname ~ '_y\d{4}m\d{2}$'
                    AND make_timestamptz(left(right(c.relname, 7), 4)::integer, right(c.relname, 2)::integer, 1, 0, 0, 0, 'UTC')
                        < month
                  ORDER BY 1 LOOP
        EXECUTE format('DROP TABLE %I.%I', home, child);
        RETURN NEXT child;
    END LOOP;
    EXECUTE format('DELETE FROM %I.%I WHERE %I < %L', home, ledger || '_default', moment, month);
    EXECUTE format('INSERT INTO %I.kept_since AS k VALUES (%L, %L)'
                   ' ON CONFLICT (ledger) DO UPDATE SET since = excluded.since WHERE k.since < excluded.since', home, ledger, month);
END $$;

-- Calls that a span of the roll-ups does not add up to, either way. Of refused ones there are as many rows as are told,
-- never more than are counted. Nothing is said of a time whose calls were dropped, or whose rows of this span were.
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
     WHERE start >= coalesce((SELECT max(since) FROM kept_since WHERE ledger IN ('call', 'usage_rollup_' || span)), '-infinity')
       AND ((coalesce(c.requests, 0), coalesce(c.tokens, 0), coalesce(c.credits, 0), coalesce(c.units, 0), coalesce(c.cost, 0))
            IS DISTINCT FROM (r.requests, r.tokens, r.credits, r.units, r.cost)
            OR coalesce(c.refused, 0) > r.refused);
DROP TABLE call_kept;
