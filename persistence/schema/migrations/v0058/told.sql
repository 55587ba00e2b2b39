-- What is told of a plan that has ended is looked at again: its tokens used ahead of days, and those beyond it.

-- Tokens by which it moved the quota of the cycle that ran, where it was used before its tenant was changed last; an
-- amendment says so of all its tokens.
ALTER TABLE use_event ADD COLUMN quota_tokens BIGINT DEFAULT 0 NOT NULL
    CONSTRAINT use_event_quota_tokens_check CHECK (quota_tokens BETWEEN 0 AND 9007199254740991);
ALTER TABLE amendment ADD COLUMN quota_tokens BIGINT DEFAULT 0 NOT NULL
    CONSTRAINT amendment_quota_tokens_check CHECK (quota_tokens BETWEEN 0 AND 9007199254740991);
DROP INDEX use_event_late_idx;
CREATE INDEX use_event_told_idx ON use_event (tenant_id, used_at) WHERE late_tokens > 0 OR quota_tokens > 0;
DROP INDEX amendment_late_idx;
CREATE INDEX amendment_told_idx ON amendment (tenant_id, used_at) WHERE late_tokens > 0 OR quota_tokens > 0;

-- Tokens that were told of calls behind them, by when those were used; in the ledger they are of a type, and say a reason.
CREATE VIEW told_use AS
    SELECT tenant_id, used_at, request_id, true AS is_more, late_tokens, quota_tokens, 'consume' AS as_type, NULL::text AS reason
      FROM use_event WHERE late_tokens > 0 OR quota_tokens > 0
    UNION ALL
    SELECT tenant_id, used_at, request_id, direction = 'OUT', late_tokens, quota_tokens, 'adjust', reason
      FROM amendment WHERE late_tokens > 0 OR quota_tokens > 0;

-- What was used of the plan (null of those that were settled before it was kept), and how many differences were charged.
-- `carries`: the next plan takes on what is beyond it as debt. `debt_counted` is known once a plan ends that carried it: the
-- write that took that one (null of a tenant that was deleted), when its cycle of tokens ends, how many more tokens the plan
-- behind it has; `debt` is what was left then.
ALTER TABLE plan_end
    ADD COLUMN used BIGINT CONSTRAINT plan_end_used_check CHECK (used >= 0),
    ADD COLUMN charges BIGINT DEFAULT 0 NOT NULL,
    ADD COLUMN carries BOOLEAN DEFAULT false NOT NULL,
    ADD COLUMN debt_write_id UUID,
    ADD COLUMN debt_ends_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN debt_counted BIGINT CONSTRAINT plan_end_debt_counted_check CHECK (debt_counted IS NULL OR carries AND debt_counted >= 0),
    ADD COLUMN debt BIGINT CONSTRAINT plan_end_debt_check CHECK (debt IS NULL OR carries AND debt >= 0);
CREATE INDEX plan_end_tenant_id_idx ON plan_end (tenant_id);
CREATE OR REPLACE FUNCTION keep_plan_end() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    known TEXT[] := ARRAY['used', 'debt', 'quantity', 'amount', 'charges'];
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.carries AND OLD.debt_counted IS NULL THEN
        known := known || ARRAY['debt_write_id', 'debt_ends_at', 'debt_counted'];
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.charges >= OLD.charges AND (NEW.quantity IS NOT NULL OR OLD.quantity IS NULL)
       AND (to_jsonb(NEW) - known) = (to_jsonb(OLD) - known) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the end of plan % stands: % refused', OLD.id, TG_OP USING ERRCODE = 'restrict_violation';
END $$;
UPDATE plan_end SET charges = 1 WHERE amount > 0;

-- Tokens that a tenant was beyond its plan at the end of each span: from a reset or a change of plan to the next one.
-- `next_seq` is null of the span that runs. The price is the first one there was for them in their cycle and plan.
-- Spans that ended with nothing owed are left out, unless something was charged while they ran, or was told later. What was
-- told, charged or taken back after its cycle had ended counts in that one, from when it was used on. So does what came into
-- the ledger behind a span of the cycle that runs: the span it was used in has it as if it had been told in time.
CREATE OR REPLACE VIEW overage_span AS
    SELECT t.organization_id, s.tenant_id, s.cycle, s.first_seq, s.next_seq, e.seq AS last_seq,
           greatest(told.more - told.less - e.total_remaining, 0) AS beyond, coalesce(began.at, s.created_at) AS began, e.created_at AS ended,
           -- What its organization negotiated came with the plan.
           coalesce(given.price, p.unit_price)::numeric(28,10) AS unit_price,
           told.more AS late, told.less AS back
      FROM (SELECT r.tenant_id, r.seq AS first_seq, r.cycle, r.created_at, lead(r.seq) OVER w AS next_seq, lead(r.created_at) OVER w AS next_at,
                   -- What remained just before the next one, by what it says itself.
                   lead(coalesce(r.total_remaining, 0) - CASE r.direction WHEN 'IN' THEN r.amount ELSE -r.amount END)
                       OVER w AS left_with
              FROM token_ledger AS r LEFT JOIN control_write AS c ON c.id = r.control_write_id AND c.verb = 'plan'
             WHERE r.transaction_type <> 'consume' AND (r.transaction_type = 'reset' OR c.id IS NOT NULL)
            WINDOW w AS (PARTITION BY r.tenant_id ORDER BY r.seq)) AS s
      JOIN tenant AS t ON t.id = s.tenant_id
     CROSS JOIN LATERAL (SELECT l.seq, l.total_remaining, l.created_at FROM token_ledger AS l
              WHERE l.tenant_id = s.tenant_id AND l.seq >= s.first_seq AND l.seq < coalesce(s.next_seq, 9223372036854775807)
              ORDER BY l.seq DESC LIMIT 1) AS e
      LEFT JOIN LATERAL (SELECT b.created_at AS at FROM token_ledger AS b
              WHERE b.tenant_id = s.tenant_id AND b.seq <= s.first_seq AND b.transaction_type = 'reset'
                AND b.cycle = s.cycle ORDER BY b.seq DESC LIMIT 1) AS began ON true
     CROSS JOIN LATERAL (
              SELECT coalesce(sum(n.tokens) FILTER (WHERE u.is_more), 0)::bigint AS more,
                     coalesce(sum(n.tokens) FILTER (WHERE NOT u.is_more), 0)::bigint AS less
                FROM told_use AS u
               CROSS JOIN LATERAL (SELECT u.late_tokens + CASE
                       WHEN s.next_seq IS NULL OR u.quota_tokens = 0 OR EXISTS (SELECT FROM token_ledger AS b
                            WHERE b.request_id = u.request_id AND b.tenant_id = s.tenant_id AND b.seq < s.next_seq
                              AND b.transaction_type = u.as_type AND (u.reason IS NULL OR b.metadata->>'reason' = u.reason))
                       THEN 0 ELSE u.quota_tokens END AS tokens) AS n
               WHERE u.tenant_id = s.tenant_id AND u.used_at >= coalesce(began.at, s.created_at)
                 AND u.used_at < coalesce(s.next_at, 'infinity')) AS told
     CROSS JOIN LATERAL (SELECT (w.payload->>'plan_id')::bigint AS plan_id, g.created_at AS at, (w.payload->>'overage_unit_price')::numeric AS price
               FROM token_ledger AS g JOIN control_write AS w ON w.id = g.control_write_id AND w.verb = 'plan'
              WHERE g.tenant_id = s.tenant_id AND g.seq <= s.first_seq AND g.transaction_type <> 'consume'
              ORDER BY g.seq DESC LIMIT 1) AS given
     CROSS JOIN LATERAL (SELECT v.unit_price
               FROM (SELECT *, lead(since) OVER w AS till, lag(since) OVER w IS NULL AS is_first
                       FROM token_plan_price WHERE plan_id = given.plan_id WINDOW w AS (ORDER BY since)) AS v
              WHERE v.overage_policy = 'bill' AND v.unit_price IS NOT NULL AND (v.since <= e.created_at OR v.is_first)
                AND coalesce(v.till, 'infinity') > greatest(began.at, given.at)
              ORDER BY v.since LIMIT 1) AS p
     WHERE s.next_seq IS NULL OR s.left_with < 0 OR told.more > 0
        OR EXISTS (SELECT FROM charge AS c WHERE c.source = 'token_ledger' AND c.tenant_id = s.tenant_id
                      AND c.place = s.cycle AND c.source_id = s.first_seq);

-- What is owed, told from its sources, is what there are charges of, billed or not. Credit notes stand aside.
CREATE OR REPLACE VIEW invariant_owed AS
    WITH charged AS (
        SELECT organization_id, kind, source, source_id, tenant_id, coalesce(service_id, 0) AS service_id, period_start,
               unit_price, quantity, amount
          FROM charge WHERE reason NOT IN ('credited', 'credit_void')
    )
    -- units of a day at a price
    SELECT 'tenant:' || tenant_id AS account, NULL::bigint AS seq,
           format('day %s service %s at %s: %s units noted as charged, charges of %s units and %s', start, service_id, unit_price,
                  coalesce(t.charged_quantity, 0), coalesce(c.quantity, 0), coalesce(c.amount, 0)) AS detail
      FROM (SELECT tenant_id, service_id, unit_price, day::timestamp AT TIME ZONE 'UTC' AS start, charged_quantity
              FROM usage_tier WHERE charged_quantity <> 0) AS t
      FULL JOIN (SELECT tenant_id, service_id, unit_price, period_start AS start, sum(quantity) AS quantity, sum(amount) AS amount
                   FROM charged WHERE kind = 'usage' GROUP BY 1, 2, 3, 4 HAVING sum(quantity) <> 0 OR sum(amount) <> 0) AS c
           USING (tenant_id, service_id, unit_price, start)
     WHERE (coalesce(t.charged_quantity, 0), coalesce(t.charged_quantity, 0) * unit_price)
           <> (coalesce(c.quantity, 0), coalesce(c.amount, 0))
    UNION ALL
    -- credits that were sold; prepaid ones are owed with their own invoice, before the account has them
    SELECT 'credits:' || coalesce(a.organization_id, c.organization_id), NULL,
           format('addition %s of %s has charges of %s', id, coalesce(a.amount, 0), coalesce(c.amount, 0))
      FROM (SELECT a.organization_id, a.id, a.credits_added * a.unit_cost AS amount FROM credit_addition AS a
              LEFT JOIN credit_posting AS p ON p.organization_id = a.organization_id AND p.credit_addition_id = a.id
               AND p.kind = 'addition'
             WHERE a.category = 'paid' AND a.unit_cost <> 0
               AND (p.credit_addition_id IS NOT NULL OR a.invoicing = 'prepaid' AND a.invoice_id IS NOT NULL)) AS a
      FULL JOIN (SELECT organization_id, source_id AS id, sum(amount) AS amount FROM charged
                  WHERE kind = 'credits_purchased' GROUP BY 1, 2 HAVING sum(amount) <> 0) AS c USING (id)
     WHERE coalesce(a.amount, 0) <> coalesce(c.amount, 0)
    UNION ALL
    -- tokens beyond a plan at the end of each span, but for what earlier ones of the cycle were charged
    SELECT 'tenant:' || tenant_id, first_seq, format('cycle %s: %s tokens beyond the plan, charges of %s', o.cycle, o.owed,
           coalesce(c.quantity, 0))
      FROM (SELECT tenant_id, cycle, first_seq, next_seq, unit_price,
                   greatest(beyond - coalesce(max(beyond) OVER (PARTITION BY tenant_id, cycle ORDER BY first_seq
                       ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0), 0) AS owed
              FROM overage_span) AS o
      LEFT JOIN (SELECT tenant_id, source_id AS first_seq, sum(quantity) AS quantity, sum(amount) AS amount FROM charged
                  WHERE kind = 'overage' GROUP BY 1, 2) AS c USING (tenant_id, first_seq)
     WHERE next_seq IS NOT NULL AND (owed, owed * unit_price) <> (coalesce(c.quantity, 0), coalesce(c.amount, 0))
    UNION ALL
    -- credits used beyond the balance, by day and price: what is noted, against charges and what is open
    SELECT 'credits:' || coalesce(d.organization_id, c.organization_id), NULL,
           format('day %s at %s: %s credits noted as charged, %s of them billed, charges of %s, %s billed, and %s', start,
                  unit_price, d.charged_quantity, d.billed_quantity, c.quantity, c.billed, c.amount)
      FROM (SELECT organization_id, day::timestamp AT TIME ZONE 'UTC' AS start, unit_cost AS unit_price,
                   charged_quantity, billed_quantity FROM credit_debt) AS d
      FULL JOIN (SELECT organization_id, period_start AS start, unit_price, sum(quantity) AS quantity, sum(amount) AS amount,
                        coalesce(sum(quantity) FILTER (WHERE invoice_id IS NOT NULL), 0) AS billed
                   FROM charge WHERE kind = 'credits_postpaid' AND reason NOT IN ('credited', 'credit_void') GROUP BY 1, 2, 3) AS c
           USING (organization_id, start, unit_price)
     WHERE (coalesce(d.charged_quantity, 0), coalesce(d.billed_quantity, 0), coalesce(d.charged_quantity, 0) * unit_price)
           <> (coalesce(c.quantity, 0), coalesce(c.billed, 0), coalesce(c.amount, 0))
    UNION ALL
    SELECT 'credits:' || organization_id, NULL, format('day %s at %s: %s credits noted as open, %s are', day, unit_cost,
           coalesce(d.open_quantity, 0), coalesce(a.amount, 0))
      FROM credit_debt AS d
      FULL JOIN (SELECT organization_id, day, unit_cost, sum(amount) AS amount FROM credit_allocation
                  WHERE credit_addition_id IS NULL AND unit_cost IS NOT NULL GROUP BY 1, 2, 3) AS a
           USING (organization_id, day, unit_cost)
     WHERE coalesce(d.open_quantity, 0) <> coalesce(a.amount, 0)
    UNION ALL
    -- what an invoice billed of them is given at most once
    SELECT 'credits:' || a.organization_id, NULL, format('invoice %s billed %s credits, %s were given', a.invoice_id,
           coalesce(c.quantity, 0), a.credits_added)
      FROM credit_addition AS a
      LEFT JOIN (SELECT invoice_id, sum(quantity) AS quantity FROM charge WHERE kind = 'credits_postpaid'
                    AND reason NOT IN ('credited', 'credit_void') GROUP BY 1) AS c ON c.invoice_id = a.invoice_id
     WHERE a.invoicing = 'postpaid' AND a.credits_added > coalesce(c.quantity, 0)
    UNION ALL
    -- tokens used ahead of their days, as noted with the end of a plan: never more than the fee of its cycle
    SELECT 'tenant:' || coalesce(e.tenant_id, c.tenant_id), NULL, format('the plan that ended with %s owes %s, charges of %s',
           coalesce(e.fact, c.fact), coalesce(e.amount, 0), coalesce(c.amount, 0))
      FROM (SELECT tenant_id, 'early:' || control_write_id AS fact, amount FROM plan_end WHERE amount <> 0) AS e
      FULL JOIN (SELECT max(c.tenant_id) AS tenant_id, left(coalesce(o.fact, c.fact), 42) AS fact, sum(c.amount) AS amount
                   FROM charge AS c LEFT JOIN LATERAL (
                        WITH RECURSIVE back AS (
                            SELECT c.id, c.corrects_id, c.fact
                            UNION ALL SELECT b.id, b.corrects_id, b.fact FROM charge AS b JOIN back ON b.id = back.corrects_id)
                        SELECT fact FROM back WHERE corrects_id IS NULL) AS o ON true
                  WHERE c.kind = 'early_use' AND c.reason NOT IN ('credited', 'credit_void') GROUP BY 2 HAVING sum(c.amount) <> 0) AS c
           USING (fact)
     WHERE coalesce(e.amount, 0) <> coalesce(c.amount, 0)
    UNION ALL
    SELECT 'organization:' || organization_id, NULL, format('the cycle from %s owes %s for early use, its fee is %s', paid_from,
           sum(amount), max(worth))
      FROM plan_end WHERE amount > 0 GROUP BY organization_id, anchor_date, paid_from
    HAVING sum(amount) > max(worth) + 0.000000001 * count(*);
