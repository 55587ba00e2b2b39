-- Today's functions, and the triggers that call them. `:schema` is the schema's name, `:home` the same as a text.

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

CREATE FUNCTION keep_invoice() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    paid text[] := '{payment_status,uncollectible_at,used_up}';
    made_void text[] := '{payment_status,status,voided_at}';
BEGIN
    IF OLD.status = 'draft' THEN
        RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.status = 'finalized'
       AND (NEW.status = 'finalized' AND (to_jsonb(NEW) - paid) = (to_jsonb(OLD) - paid)
            OR NEW.status = 'void' AND (to_jsonb(NEW) - made_void) = (to_jsonb(OLD) - made_void)) THEN
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

-- How far an account's ledger goes of the counts under an epoch or before it.
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

CREATE FUNCTION keep_plan_price() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO token_plan_price AS v
        (plan_id, since, overage_policy, unit_price, total_amount, reset_interval, time_zone, anchor_day)
    VALUES (NEW.id, now(), NEW.overage_policy, NEW.overage_unit_price, NEW.total_amount, NEW.reset_interval, NEW.time_zone,
            NEW.anchor_day)
    ON CONFLICT (plan_id, since) DO UPDATE
       SET overage_policy = excluded.overage_policy, unit_price = excluded.unit_price, total_amount = excluded.total_amount,
           reset_interval = excluded.reset_interval, time_zone = excluded.time_zone, anchor_day = excluded.anchor_day;
    RETURN NULL;
END $$;

-- Null where nothing is left of the text: it finds nothing.
CREATE FUNCTION name_query(wanted text) RETURNS tsquery LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURNS NULL ON NULL INPUT
RETURN (SELECT to_tsquery('simple'::regconfig, string_agg('''' || word || ''':*', ' & '))
          FROM regexp_split_to_table(wanted, '[[:punct:][:space:]]+') AS word WHERE word <> '');

-- A sum at half the cost of sum() in a report: that one widens each number. One too large is an error.
CREATE AGGREGATE usage_total (bigint) (SFUNC = int8pl, STYPE = bigint, COMBINEFUNC = int8pl, PARALLEL = SAFE);

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

-- Sequences go on a million above their own last id and above a known one, for a keeper that owns nothing: behind a
-- database that was set back, others still know ids that it would give again.
CREATE FUNCTION move_ids_past(known bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    home CONSTANT text := :home;
    ids regclass;
BEGIN
    IF known IS NULL OR known NOT BETWEEN 0 AND 9007199254740991 / 2 THEN
        RAISE EXCEPTION 'ids are moved past a known one' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR ids IN SELECT oid::regclass FROM pg_class
                WHERE relkind = 'S' AND relnamespace = to_regnamespace(quote_ident(home)) ORDER BY oid LOOP
        PERFORM setval(ids, greatest(nextval(ids), known) + 1000000);
    END LOOP;
END $$;

-- A charge that gets its invoice is compared as it is, not as JSON.
CREATE FUNCTION keep_charge() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    placed charge;
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.invoice_id IS NULL AND NEW.invoice_id IS NOT NULL THEN
        placed := OLD;
        placed.invoice_id := NEW.invoice_id;
        placed.line := NEW.line;
        IF placed *= NEW THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'charge % stands: % refused', OLD.id, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

-- What a day of a segment costs, as before: without a query for each day.
CREATE FUNCTION day_fee(cost numeric, anchor date, cadence text, day date) RETURNS numeric LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    each integer := CASE cadence WHEN 'annual' THEN 12 WHEN 'quarterly' THEN 3 ELSE 1 END;
    since integer := (extract(year FROM day) - extract(year FROM anchor)) * 12 + extract(month FROM day) - extract(month FROM anchor);
    months integer := floor(since::numeric / each) * each;
    first date := anchor + make_interval(months => months);
    before integer;
    whole integer;
BEGIN
    IF first > day THEN
        months := months - each;
        first := anchor + make_interval(months => months);
    END IF;
    before := day - first;
    whole := (anchor + make_interval(months => months + each))::date - first;
    RETURN (div(cost * 2000000000 * (before + 1) + whole, 2 * whole) - div(cost * 2000000000 * before + whole, 2 * whole)) * 0.000000001;
END $$;

CREATE FUNCTION keep_plan_end() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    known TEXT[] := ARRAY['used', 'began', 'debt', 'quantity', 'amount', 'charges', 'regained'];
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.carries AND OLD.debt_counted IS NULL THEN
        known := known || ARRAY['debt_write_id', 'debt_ends_at', 'debt_counted'];
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.charges >= OLD.charges AND (NEW.quantity IS NOT NULL OR OLD.quantity IS NULL)
       AND (OLD.regained IS NULL OR NEW.regained >= OLD.regained)
       AND (to_jsonb(NEW) - known) = (to_jsonb(OLD) - known) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the end of plan % stands: % refused', OLD.id, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

-- Lines of a statement are looked at together: a row for each was a query for each.
CREATE FUNCTION keep_invoice_lines() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    closed text;
BEGIN
    SELECT min(number) INTO closed FROM invoice
     WHERE id IN (SELECT invoice_id FROM touched) AND status <> 'draft';
    IF closed IS NOT NULL THEN
        RAISE EXCEPTION 'invoice % is closed: % of its lines refused', closed, TG_OP
              USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION keep_handover_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.created_at < now() - interval '35 days' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'handover_event % stands: % refused', OLD.id, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

-- The partitions ahead, as before, but each month whole or with a partition a day. `by` is 'month' or 'day':
-- a month ahead or the present one that has no row yet is made again where it is of the other form; '' leaves
-- what is there as it is. A new partition stands by itself until it is attached, so nobody who writes waits
-- for a new month; what somebody reads for long is left for the next time. One month of days is made a call,
-- the caller asks until nothing more is made.
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
CREATE FUNCTION ensure_partitions(at timestamptz, months_ahead integer) RETURNS SETOF text
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM :schema.ensure_partitions(at, months_ahead, '')
$$;

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

CREATE FUNCTION keep_rerating() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.created_at < all_kept_since() THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'rerating % stands: % refused', OLD.id, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

-- When a request began by its id, and the least id of those that began at a moment; null of no moment.
CREATE FUNCTION began_of_id(request_id uuid) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT to_timestamp(('x' || left(replace(request_id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
$$;

CREATE FUNCTION first_id_at(moment timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN isfinite(moment)
           THEN rpad(lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0'), 32, '0')::uuid END
$$;

-- When an entry of the books is: at the last instant before `ends`, where what it is of ended in a month (UTC) that is still
-- open. A month is open until a day behind its end. Else it is of the moment at which it was known: a closed month stays.
CREATE FUNCTION entered_at(known TIMESTAMP WITH TIME ZONE, ends TIMESTAMP WITH TIME ZONE) RETURNS TIMESTAMP WITH TIME ZONE
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN known >= ends
                 AND known < (date_trunc('month', (ends - interval '1 microsecond') AT TIME ZONE 'UTC') + interval '1 month')
                             AT TIME ZONE 'UTC' + interval '24 hours'
                THEN ends - interval '1 microsecond' ELSE known END
$$;

-- Debt that an addition covers left with the addition. Rows that archiving writes again were drawn before: they are older
-- than their transaction.
CREATE FUNCTION keep_drawdowns() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH given AS MATERIALIZED (
        SELECT p.credit_addition_id AS id, p.created_at AS at
          FROM (SELECT DISTINCT organization_id, credit_addition_id FROM made WHERE credit_addition_id IS NOT NULL) AS l
          JOIN credit_posting AS p ON p.organization_id = l.organization_id AND p.credit_addition_id = l.credit_addition_id
           AND p.kind = 'addition')
    INSERT INTO credit_drawdown AS d (organization_id, credit_addition_id, kind, day, credits)
    SELECT l.organization_id, l.credit_addition_id, coalesce(m.kind, 'use'),
           (entered_at(l.created_at, greatest(m.at, g.at) + interval '1 microsecond') AT TIME ZONE 'UTC')::date, sum(l.amount)
      FROM made AS l JOIN given AS g ON g.id = l.credit_addition_id
      LEFT JOIN (SELECT organization_id, seq, 'use' AS kind, "timestamp" AS at FROM credit_transaction
                 UNION ALL
                 SELECT organization_id, seq, CASE WHEN kind = 'expiry' THEN 'expiry' ELSE 'return' END, created_at
                   FROM credit_posting) AS m ON m.organization_id = l.organization_id AND m.seq = l.seq
     WHERE l.created_at >= now()
     GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
    ON CONFLICT (credit_addition_id, kind, day) DO UPDATE SET credits = d.credits + excluded.credits;
    RETURN NULL;
END $$;

-- Rows that are only added.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'account_checkpoint', 'archived_run', 'audit_log', 'credit_posting', 'credit_transaction',
        'exchange_rate', 'feature_usage', 'ledger_head', 'ledger_segment', 'note_application', 'payment', 'price',
        'token_ledger'
    ] LOOP
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION refuse_change()', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY[
        'accounting_rate', 'amendment', 'credit_price', 'dunning_step', 'invoice_basis', 'invoice_document', 'tax_rate'
    ] LOOP
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON %I EXECUTE FUNCTION refuse_change()', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY[
        'account_checkpoint', 'accounting_rate', 'amendment', 'archived_run', 'audit_log', 'audit_log_default',
        'call_default', 'charge', 'credit_posting', 'credit_posting_default', 'credit_price',
        'credit_transaction', 'credit_transaction_default', 'dunning_step', 'exchange_rate', 'feature_usage',
        'feature_usage_default', 'handover_event', 'invoice', 'invoice_basis', 'invoice_document',
        'invoice_line', 'ledger_head', 'ledger_segment', 'note_application', 'payment', 'plan_end', 'price', 'rerating', 'tax_rate',
        'token_ledger', 'token_ledger_default', 'usage_rollup_day_default', 'usage_rollup_hour_default',
        'usage_rollup_team_day_default', 'usage_rollup_team_hour_default', 'use_event'
    ] LOOP
        EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I EXECUTE FUNCTION refuse_change()', name);
    END LOOP;
END $$;

CREATE TRIGGER immutable BEFORE DELETE OR UPDATE ON invoice FOR EACH ROW
    EXECUTE FUNCTION keep_invoice();
CREATE TRIGGER immutable BEFORE INSERT OR DELETE OR UPDATE ON invoice_basis FOR EACH ROW
    EXECUTE FUNCTION keep_invoice_line();
CREATE TRIGGER immutable BEFORE UPDATE ON invoice_line FOR EACH ROW
    EXECUTE FUNCTION keep_invoice_line();
CREATE TRIGGER priced AFTER INSERT ON token_plan FOR EACH ROW
    EXECUTE FUNCTION keep_plan_price();
CREATE TRIGGER repriced AFTER UPDATE ON token_plan FOR EACH ROW
    WHEN ((OLD.overage_policy, OLD.overage_unit_price, OLD.total_amount, OLD.reset_interval, OLD.time_zone, OLD.anchor_day)
          IS DISTINCT FROM
          (NEW.overage_policy, NEW.overage_unit_price, NEW.total_amount, NEW.reset_interval, NEW.time_zone, NEW.anchor_day))
    EXECUTE FUNCTION keep_plan_price();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON charge FOR EACH ROW
    EXECUTE FUNCTION keep_charge();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON plan_end FOR EACH ROW
    EXECUTE FUNCTION keep_plan_end();
CREATE TRIGGER immutable_delete AFTER DELETE ON invoice_line REFERENCING OLD TABLE AS touched FOR EACH STATEMENT
    EXECUTE FUNCTION keep_invoice_lines();
CREATE TRIGGER immutable_insert AFTER INSERT ON invoice_line REFERENCING NEW TABLE AS touched FOR EACH STATEMENT
    EXECUTE FUNCTION keep_invoice_lines();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON handover_event FOR EACH ROW
    EXECUTE FUNCTION keep_handover_event();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON use_event FOR EACH ROW
    EXECUTE FUNCTION keep_use_event();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON rerating FOR EACH ROW
    EXECUTE FUNCTION keep_rerating();
CREATE TRIGGER drawn AFTER INSERT ON credit_allocation REFERENCING NEW TABLE AS made FOR EACH STATEMENT
    EXECUTE FUNCTION keep_drawdowns();
