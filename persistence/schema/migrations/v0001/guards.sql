-- What the database itself refuses, and the partitions it is given.

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

-- Row triggers are inherited by every partition; TRUNCATE ones are not, see ensure_partitions.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON token_ledger FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON credit_posting FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON credit_transaction FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON feature_usage FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_log FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON token_ledger EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON credit_posting EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON credit_transaction EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON feature_usage EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON audit_log EXECUTE FUNCTION refuse_change();

-- A finalized invoice may become void, nothing else; its lines are those it was finalized with.
CREATE FUNCTION keep_invoice() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status = 'draft' THEN
        RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.status = 'finalized' AND NEW.status = 'void'
       AND (to_jsonb(NEW) - 'status' - 'voided_at') = (to_jsonb(OLD) - 'status' - 'voided_at') THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'invoice % is %: % refused', OLD.number, OLD.status, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

CREATE FUNCTION keep_invoice_line() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    closed text;
BEGIN
    SELECT min(number) INTO closed FROM invoice
     WHERE id IN (OLD.invoice_id, NEW.invoice_id) AND status <> 'draft';
    IF closed IS NOT NULL THEN
        RAISE EXCEPTION 'invoice % is closed: % of its lines refused', closed, TG_OP USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END $$;

CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON invoice FOR EACH ROW EXECUTE FUNCTION keep_invoice();
CREATE TRIGGER immutable BEFORE INSERT OR UPDATE OR DELETE ON invoice_line FOR EACH ROW EXECUTE FUNCTION keep_invoice_line();
CREATE TRIGGER immutable BEFORE INSERT OR UPDATE OR DELETE ON invoice_basis FOR EACH ROW EXECUTE FUNCTION keep_invoice_line();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON invoice EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON invoice_line EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON invoice_basis EXECUTE FUNCTION refuse_change();

-- Makes the monthly partitions from the month before `at` to `months_ahead` after it and answers
-- the new ones. A month whose rows already lie in the default partition is left there.
CREATE FUNCTION ensure_partitions(at timestamptz, months_ahead integer) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    ledger text;
    month timestamp;
    child text;
BEGIN
    PERFORM pg_advisory_xact_lock(7801, 2);
    FOREACH ledger IN ARRAY ARRAY['token_ledger', 'credit_posting', 'credit_transaction', 'feature_usage'] LOOP
        IF to_regclass(ledger || '_default') IS NULL THEN
            EXECUTE format('CREATE TABLE %I PARTITION OF %I DEFAULT', ledger || '_default', ledger);
            EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I EXECUTE FUNCTION refuse_change()', ledger || '_default');
            RETURN NEXT ledger || '_default';
        END IF;
        FOR month IN SELECT date_trunc('month', at AT TIME ZONE 'UTC') + make_interval(months => n)
                       FROM generate_series(-1, months_ahead) AS n LOOP
            child := format('%s_y%sm%s', ledger, to_char(month, 'YYYY'), to_char(month, 'MM'));
            CONTINUE WHEN to_regclass(child) IS NOT NULL;
            BEGIN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)', child, ledger,
                    month AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC');
                EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I EXECUTE FUNCTION refuse_change()', child);
                RETURN NEXT child;
            EXCEPTION WHEN check_violation THEN
                NULL;  -- the default partition holds rows of this month: they stay where they are
            END;
        END LOOP;
    END LOOP;
END $$;

-- How far an account's ledger goes of what was counted under an epoch or before it.
CREATE FUNCTION stored_seq(account text, until_epoch bigint) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce(CASE split_part(account, ':', 1)
        WHEN 'tenant' THEN (SELECT max(seq) FROM token_ledger WHERE tenant_id = owner AND epoch <= until_epoch)
        WHEN 'credits' THEN greatest(
            (SELECT max(seq) FROM credit_transaction WHERE organization_id = owner AND epoch <= until_epoch),
            (SELECT max(seq) FROM credit_posting WHERE organization_id = owner AND epoch <= until_epoch))
        ELSE (SELECT max(seq) FROM feature_usage WHERE organization_id = owner AND epoch <= until_epoch)
      END, 0)
      FROM (SELECT split_part(account, ':', 2)::bigint AS owner) AS named
$$;

-- What tokens beyond a plan cost, and since when: an invoice asks for a cycle's price long after it.
CREATE FUNCTION keep_plan_price() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO token_plan_price (plan_id, since, overage_policy, unit_price)
    VALUES (NEW.id, now(), NEW.overage_policy, NEW.overage_unit_price)
    ON CONFLICT (plan_id, since) DO UPDATE
       SET overage_policy = excluded.overage_policy, unit_price = excluded.unit_price;
    RETURN NULL;
END $$;

CREATE TRIGGER priced AFTER INSERT ON token_plan FOR EACH ROW EXECUTE FUNCTION keep_plan_price();
CREATE TRIGGER repriced AFTER UPDATE ON token_plan FOR EACH ROW
    WHEN ((OLD.overage_policy, OLD.overage_unit_price) IS DISTINCT FROM (NEW.overage_policy, NEW.overage_unit_price))
    EXECUTE FUNCTION keep_plan_price();
