-- Roll-ups at several levels, so that a report reads few rows whatever it groups by: each call is in one row of each
-- `span`. A row of an hour, a day, a week (from Monday) or a month is of everything that is told apart; a row of a
-- team's hour or day is of no user and no key (both 0), and so of few. A span has a partition of its own, and those
-- that grow have one a month. What a call does not have is 0, -1 for a project, or an empty text: a key has no nulls.
ALTER TABLE usage_rollup RENAME TO usage_rollup_before;
ALTER TABLE usage_rollup_before RENAME CONSTRAINT usage_rollup_pkey TO usage_rollup_before_pkey;
DROP VIEW invariant_usage_adds_up;
DROP INDEX usage_rollup_start_idx;
CREATE TABLE usage_rollup (
    LIKE usage_rollup_before,
    CONSTRAINT usage_rollup_pkey PRIMARY KEY
        (span, organization_id, start, tenant_id, api_key_id, user_id, project_id, service_id, model, currency)
)
 PARTITION BY LIST (span);
CREATE INDEX usage_rollup_start_idx ON usage_rollup (start);
CREATE TABLE usage_rollup_hour PARTITION OF usage_rollup FOR VALUES IN ('hour') PARTITION BY RANGE (start);
CREATE TABLE usage_rollup_day PARTITION OF usage_rollup FOR VALUES IN ('day') PARTITION BY RANGE (start);
CREATE TABLE usage_rollup_team_hour PARTITION OF usage_rollup FOR VALUES IN ('team_hour') PARTITION BY RANGE (start);
CREATE TABLE usage_rollup_team_day PARTITION OF usage_rollup FOR VALUES IN ('team_day') PARTITION BY RANGE (start);
CREATE TABLE usage_rollup_week PARTITION OF usage_rollup FOR VALUES IN ('week');
CREATE TABLE usage_rollup_month PARTITION OF usage_rollup FOR VALUES IN ('month');

-- The partitions ahead, made for a keeper that owns nothing: the function runs with its owner's rights, so it names the
-- schema itself and finds nothing by the caller's search_path. How much it makes is bounded. Every table that is
-- partitioned by time has them.
CREATE OR REPLACE FUNCTION ensure_partitions(at timestamptz, months_ahead integer) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    home CONSTANT text := :home;
    ledger text;
    month timestamp;
    child text;
BEGIN
    IF at IS NULL OR at < '2000-01-01Z' OR at >= '2100-01-01Z' OR months_ahead IS NULL OR months_ahead NOT BETWEEN 0 AND 24 THEN
        RAISE EXCEPTION 'partitions are made from 2000 to 2100, 0 to 24 months ahead' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(7801, 2);
    FOR ledger IN SELECT c.relname FROM pg_partitioned_table AS p JOIN pg_class AS c ON c.oid = p.partrelid
                   WHERE p.partstrat = 'r' AND c.relnamespace = to_regnamespace(quote_ident(home)) ORDER BY 1 LOOP
        child := ledger || '_default';
        IF to_regclass(format('%I.%I', home, child)) IS NULL THEN
            EXECUTE format('CREATE TABLE %I.%I PARTITION OF %I.%I DEFAULT', home, child, home, ledger);
            EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I.%I EXECUTE FUNCTION %I.refuse_change()', home, child, home);
            RETURN NEXT child;
        END IF;
        FOR month IN SELECT date_trunc('month', at AT TIME ZONE 'UTC') + make_interval(months => n)
                       FROM generate_series(-1, months_ahead) AS n LOOP
            child := format('%s_y%sm%s', ledger, to_char(month, 'YYYY'), to_char(month, 'MM'));
            CONTINUE WHEN to_regclass(format('%I.%I', home, child)) IS NOT NULL;
            BEGIN
                EXECUTE format('CREATE TABLE %I.%I PARTITION OF %I.%I FOR VALUES FROM (%L) TO (%L)', home, child, home, ledger,
                    month AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC');
                EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I.%I EXECUTE FUNCTION %I.refuse_change()', home, child, home);
                RETURN NEXT child;
            EXCEPTION WHEN check_violation THEN
                NULL;  -- the default partition holds rows of this month: they stay where they are
            END;
        END LOOP;
    END LOOP;
END $$;
SELECT ensure_partitions(now(), 3);

-- What hours add up to at every level.
INSERT INTO usage_rollup
SELECT s.span, date_trunc(s.unit, start, 'UTC'), organization_id, tenant_id, CASE WHEN s.people THEN api_key_id ELSE 0 END,
       CASE WHEN s.people THEN user_id ELSE 0 END, project_id, service_id, model, currency, sum(requests), sum(refused),
       sum(input), sum(cache_read), sum(cache_write), sum(output), sum(reasoning), sum(tokens), sum(credits), sum(units),
       least(sum(cost), 9223372036854775807), sum(estimated), sum(unpriced)
  FROM usage_rollup_before AS b,
       (VALUES ('hour', 'hour', true), ('day', 'day', true), ('week', 'week', true), ('month', 'month', true),
               ('team_hour', 'hour', false), ('team_day', 'day', false)) AS s (span, unit, people)
 WHERE b.span = 'hour' GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10;
DROP TABLE usage_rollup_before;

-- A sum that costs a report half of what sum() does: that one widens each number. One too large is an error.
CREATE AGGREGATE usage_total (bigint) (SFUNC = int8pl, STYPE = bigint, COMBINEFUNC = int8pl, PARALLEL = SAFE);
