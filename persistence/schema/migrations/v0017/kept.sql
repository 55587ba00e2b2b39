-- Since when a table that is kept for some time has its rows: what is older was dropped.
CREATE TABLE kept_since (
    ledger TEXT NOT NULL CONSTRAINT kept_since_pkey PRIMARY KEY,
    since TIMESTAMP WITH TIME ZONE NOT NULL
);

-- Drops whole months that end before a moment, of the journal or of hours of the roll-ups, for a keeper that owns nothing:
-- it runs with its owner's rights and finds nothing by the caller's search_path. It never waits long for who writes, and
-- the last month is safe. A transaction drops months of one table: more could wait for a report that waits for them.
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
