-- The partitions ahead, as before, but each month whole or with a partition a day. `by` is 'month' or 'day': a month ahead
-- or the present one that has no row yet is made anew where it is of the other form; '' leaves what is there as it is.
-- What is made stands by itself until it is attached, so nobody who writes waits for a new month; what somebody reads for
-- long is left for the next time. One month of days is made a call, the caller asks until nothing more is made.
CREATE FUNCTION ensure_partitions(at timestamptz, months_ahead integer, by text) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    home CONSTANT text := :home;
    present CONSTANT timestamp := date_trunc('month', at AT TIME ZONE 'UTC');
    ledger record;
    month timestamp;
    day timestamp;
    child text;
    made text;
    form "char";
    has_rows boolean;
    busy text := '';
BEGIN
    IF at IS NULL OR at < '2000-01-01Z' OR at >= '2100-01-01Z' OR months_ahead IS NULL OR months_ahead NOT BETWEEN 0 AND 24 THEN
        RAISE EXCEPTION 'partitions are made from 2000 to 2100, 0 to 24 months ahead' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF by IS NULL OR by NOT IN ('', 'month', 'day') THEN
        RAISE EXCEPTION 'partitions are made by month or by day' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(7801, 2);
    FOR ledger IN SELECT c.relname AS name, pg_get_partkeydef(c.oid) AS key
                    FROM pg_partitioned_table AS p JOIN pg_class AS c ON c.oid = p.partrelid
                   WHERE p.partstrat = 'r' AND c.relnamespace = to_regnamespace(quote_ident(home))
                     AND c.relname !~ '_y\d{4}m\d{2}' ORDER BY 1 LOOP
        child := ledger.name || '_default';
        IF to_regclass(format('%I.%I', home, child)) IS NULL THEN
            EXECUTE format('CREATE TABLE %I.%I PARTITION OF %I.%I DEFAULT', home, child, home, ledger.name);
            EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I.%I EXECUTE FUNCTION %I.refuse_change()', home, child, home);
            RETURN NEXT child;
        END IF;
        FOR month IN SELECT present + make_interval(months => n) FROM generate_series(-1, months_ahead) AS n LOOP
            child := format('%s_y%sm%s', ledger.name, to_char(month, 'YYYY'), to_char(month, 'MM'));
            SELECT relkind INTO form FROM pg_class WHERE oid = to_regclass(format('%I.%I', home, child));
            CONTINUE WHEN form IS NOT NULL AND (by = '' OR month < present OR (form = 'p') = (by = 'day'));
            IF form IS NOT NULL THEN
                EXECUTE format('SELECT EXISTS (SELECT FROM %I.%I)', home, child) INTO has_rows;
                CONTINUE WHEN has_rows OR busy = ledger.name;
            END IF;
            made := child || CASE WHEN form IS NULL THEN '' ELSE '_anew' END;
            BEGIN
                EXECUTE format('CREATE TABLE %I.%I (LIKE %I.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES'
                    ' INCLUDING STORAGE) %s', home, made, home, ledger.name,
                    CASE by WHEN 'day' THEN 'PARTITION BY ' || ledger.key ELSE '' END);
                EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I.%I EXECUTE FUNCTION %I.refuse_change()', home, made, home);
                IF form IS NOT NULL THEN
                    EXECUTE format('LOCK TABLE %I.%I IN ACCESS EXCLUSIVE MODE', home, ledger.name);
                    EXECUTE format('SELECT EXISTS (SELECT FROM %I.%I)', home, child) INTO has_rows;
                    IF has_rows THEN  -- meanwhile
                        RAISE EXCEPTION USING ERRCODE = 'check_violation';
                    END IF;
                    EXECUTE format('DROP TABLE %I.%I', home, child);
                    EXECUTE format('ALTER TABLE %I.%I RENAME TO %I', home, made, child);
                END IF;
                EXECUTE format('ALTER TABLE %I.%I ATTACH PARTITION %I.%I FOR VALUES FROM (%L) TO (%L)', home, ledger.name,
                    home, child, month AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC');
                RETURN NEXT child;
                CONTINUE WHEN by <> 'day';
                -- Attached first: of what has partitions already, newer servers give the month alone its identity column.
                FOR day IN SELECT generate_series(month, month + interval '1 month' - interval '1 day', interval '1 day') LOOP
                    made := child || to_char(day, '"d"DD');
                    EXECUTE format('CREATE TABLE %I.%I PARTITION OF %I.%I FOR VALUES FROM (%L) TO (%L)', home, made, home, child,
                        day AT TIME ZONE 'UTC', (day + interval '1 day') AT TIME ZONE 'UTC');
                    EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I.%I EXECUTE FUNCTION %I.refuse_change()', home, made, home);
                END LOOP;
                RETURN;
            EXCEPTION
                WHEN check_violation THEN
                    NULL;  -- the default partition holds rows of this month: they stay where they are
                WHEN lock_not_available THEN
                    busy := ledger.name;
            END;
        END LOOP;
    END LOOP;
END $$;

-- Of programs that know of no days.
CREATE OR REPLACE FUNCTION ensure_partitions(at timestamptz, months_ahead integer) RETURNS SETOF text
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM :schema.ensure_partitions(at, months_ahead, '')
$$;
