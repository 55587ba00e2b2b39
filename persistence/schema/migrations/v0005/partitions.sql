-- The partitions ahead, made for a keeper that owns nothing: the function runs with its owner's rights, so it names the
-- schema itself and finds nothing by the caller's search_path. How much it makes is bounded.
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
    FOREACH ledger IN ARRAY ARRAY['token_ledger', 'credit_posting', 'credit_transaction', 'feature_usage'] LOOP
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
