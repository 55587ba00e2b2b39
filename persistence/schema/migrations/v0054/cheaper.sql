-- A charge that gets its invoice is compared as it is, not as JSON.
CREATE OR REPLACE FUNCTION keep_charge() RETURNS trigger LANGUAGE plpgsql AS $$
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
DROP TRIGGER immutable ON invoice_line;
CREATE TRIGGER immutable BEFORE UPDATE ON invoice_line FOR EACH ROW EXECUTE FUNCTION keep_invoice_line();
CREATE TRIGGER immutable_insert AFTER INSERT ON invoice_line REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION keep_invoice_lines();
CREATE TRIGGER immutable_delete AFTER DELETE ON invoice_line REFERENCING OLD TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION keep_invoice_lines();

-- What a day of a segment costs, as before: without a query for each day.
CREATE OR REPLACE FUNCTION day_fee(cost numeric, anchor date, cadence text, day date) RETURNS numeric LANGUAGE plpgsql IMMUTABLE AS $$
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

-- Each day's fee is told once (OFFSET), for both kinds.
CREATE OR REPLACE VIEW invariant_days AS
    SELECT 'segment:' || id AS account, NULL::bigint AS seq,
           format('%s: %s is charged %s times, %s for %s', kind, day, coalesce(c.owed, 0), coalesce(c.amount, 0), coalesce(d.fee, 0)) AS detail
      FROM (SELECT o.id, k.kind, o.day,
                   CASE k.kind WHEN 'subscription' THEN o.fee ELSE -o.fee * o.discount_rate END AS fee
              FROM (SELECT s.id, n::date AS day, s.discount_end, s.discount_rate,
                           CASE WHEN n < s.trial_end THEN 0 ELSE day_fee(s.cost, s.anchor_date, s.billing_interval, n::date) END AS fee
                      FROM subscription_segment AS s,
                           generate_series(s.start_date, least(s.end_date, s.charged_until) - 1, interval '1 day') AS n
                     WHERE s.charged_until IS NOT NULL OFFSET 0) AS o
             CROSS JOIN (VALUES ('subscription'), ('discount')) AS k (kind)
             WHERE k.kind = 'subscription' OR (o.fee * o.discount_rate <> 0 AND o.day < coalesce(o.discount_end, 'infinity'))) AS d
      FULL JOIN (SELECT source_id AS id, kind, (period_start AT TIME ZONE 'UTC')::date AS day, sum(quantity) AS net, sum(amount) AS net_amount,
                        sum(quantity) FILTER (WHERE reason NOT IN ('credited', 'credit_void')) AS owed,
                        sum(amount) FILTER (WHERE reason NOT IN ('credited', 'credit_void')) AS amount
                   FROM charge WHERE source = 'subscription_segment' GROUP BY 1, 2, 3) AS c USING (id, kind, day)
     WHERE CASE WHEN d.id IS NULL THEN (c.net, c.net_amount) <> (0, 0)
                ELSE c.net IS NULL OR c.net NOT BETWEEN 0 AND 1 OR (c.owed, c.amount) <> (1, d.fee) END
    UNION ALL
    SELECT 'organization:' || organization_id, NULL, format('the cycle from %s has charges of %s up to its minimum', period_start, sum(amount))
      FROM charge AS c WHERE kind = 'minimum_commitment' AND reason NOT IN ('credited', 'credit_void')
     GROUP BY organization_id, period_start
    HAVING sum(amount) NOT BETWEEN 0 AND (SELECT max(minimum_commitment) FROM subscription_segment AS s
                                           WHERE s.organization_id = c.organization_id);
