-- Subscriptions by the quarter, and what is agreed of one besides its plan: when the fee of a cycle falls due as one, days that
-- are free, what is off, what it comes to at least, and prices of its own. Segments have what their days are charged by.
ALTER TABLE organization_subscription
    DROP CONSTRAINT organization_subscription_billing_interval_check,
    ADD CONSTRAINT organization_subscription_billing_interval_check CHECK (billing_interval IN ('monthly', 'quarterly', 'annual')),
    ADD COLUMN billing TEXT CONSTRAINT organization_subscription_billing_check CHECK (billing IN ('advance', 'arrears')),
    ADD COLUMN trial_end DATE,
    ADD COLUMN discount_end DATE,
    ADD COLUMN discount_rate NUMERIC CONSTRAINT organization_subscription_discount_rate_check CHECK (discount_rate BETWEEN 0 AND 1),
    ADD COLUMN minimum_commitment NUMERIC CONSTRAINT organization_subscription_minimum_commitment_check CHECK (minimum_commitment >= 0),
    ADD COLUMN negotiated_cost NUMERIC CONSTRAINT organization_subscription_negotiated_cost_check CHECK (negotiated_cost >= 0),
    ADD COLUMN overage_unit_price NUMERIC CONSTRAINT organization_subscription_overage_unit_price_check CHECK (overage_unit_price >= 0);
ALTER TABLE subscription_segment
    DROP CONSTRAINT subscription_segment_billing_interval_check,
    ADD CONSTRAINT subscription_segment_billing_interval_check CHECK (billing_interval IN ('monthly', 'quarterly', 'annual')),
    ADD COLUMN billing TEXT CONSTRAINT subscription_segment_billing_check CHECK (billing IN ('advance', 'arrears')),
    ADD COLUMN trial_end DATE,
    ADD COLUMN discount_end DATE,
    ADD COLUMN discount_rate NUMERIC CONSTRAINT subscription_segment_discount_rate_check CHECK (discount_rate BETWEEN 0 AND 1),
    ADD COLUMN minimum_commitment NUMERIC CONSTRAINT subscription_segment_minimum_commitment_check CHECK (minimum_commitment >= 0);
ALTER TABLE invoice_line
    DROP CONSTRAINT invoice_line_kind_check,
    ADD CONSTRAINT invoice_line_kind_check CHECK (kind IN ('subscription', 'discount', 'overage', 'credits_purchased',
        'credits_consumed', 'usage', 'minimum_commitment', 'tax'));
-- A discount is a charge below zero beside each day it is of; what is missing to a minimum is one of its cycle.
ALTER TABLE charge
    DROP CONSTRAINT charge_kind_check,
    ADD CONSTRAINT charge_kind_check
        CHECK (kind IN ('subscription', 'discount', 'overage', 'credits_purchased', 'usage', 'minimum_commitment')),
    DROP CONSTRAINT charge_source_check,
    ADD CONSTRAINT charge_source_check CHECK (source IN ('subscription_segment', 'organization_subscription', 'token_ledger',
        'credit_addition', 'usage_tier', 'invoice_line'));

CREATE OR REPLACE FUNCTION day_fee(cost numeric, anchor date, cadence text, day date) RETURNS numeric LANGUAGE sql IMMUTABLE AS $$
    WITH months AS (
        SELECT CASE cadence WHEN 'annual' THEN 12 WHEN 'quarterly' THEN 3 ELSE 1 END AS each,
               ((extract(year FROM day) - extract(year FROM anchor)) * 12
                + extract(month FROM day) - extract(month FROM anchor))::integer AS since
    ), near AS (
        SELECT each, floor(since::numeric / each)::integer AS cycles FROM months
    ), cycle AS (
        SELECT each, cycles - CASE WHEN anchor + make_interval(months => cycles * each) > day THEN 1 ELSE 0 END AS cycles
          FROM near
    ), days AS (
        SELECT day - (anchor + make_interval(months => cycles * each))::date AS before,
               (anchor + make_interval(months => (cycles + 1) * each))::date
               - (anchor + make_interval(months => cycles * each))::date AS whole
          FROM cycle
    )
    SELECT (div(cost * 2000000000 * (before + 1) + whole, 2 * whole) - div(cost * 2000000000 * before + whole, 2 * whole))
           * 0.000000001 FROM days
$$;

-- Tokens that a tenant was beyond its plan at the end of each span, as before.
CREATE OR REPLACE VIEW overage_span AS
    SELECT t.organization_id, s.tenant_id, s.cycle, s.first_seq, s.next_seq, e.seq AS last_seq,
           greatest(late.tokens - back.tokens - e.total_remaining, 0) AS beyond, coalesce(began.at, s.created_at) AS began, e.created_at AS ended,
           -- What its organization negotiated came with the plan.
           coalesce(given.price, p.unit_price)::numeric(28,10) AS unit_price,
           late.tokens AS late, back.tokens AS back
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
     CROSS JOIN LATERAL (SELECT coalesce(sum(u.late_tokens), 0)::bigint AS tokens FROM use_event AS u
              WHERE u.tenant_id = s.tenant_id AND u.late_tokens > 0 AND u.used_at >= coalesce(began.at, s.created_at)
                AND u.used_at < coalesce(s.next_at, 'infinity')) AS late
     CROSS JOIN LATERAL (SELECT coalesce(sum(m.late_tokens), 0)::bigint AS tokens FROM amendment AS m
              WHERE m.tenant_id = s.tenant_id AND m.late_tokens > 0 AND m.used_at >= coalesce(began.at, s.created_at)
                AND m.used_at < coalesce(s.next_at, 'infinity')) AS back
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
     WHERE s.next_seq IS NULL OR s.left_with < 0 OR late.tokens > 0
        OR EXISTS (SELECT FROM charge AS c WHERE c.source = 'token_ledger' AND c.tenant_id = s.tenant_id
                      AND c.place = s.cycle AND c.source_id = s.first_seq);

-- Each day of a segment is charged once while it is part of it, and not at all once it is not, and what is off of it as often;
-- a credit note may give a charged one back. As far as days were charged. A minimum never takes more than itself.
CREATE OR REPLACE VIEW invariant_days AS
    SELECT 'segment:' || id AS account, NULL::bigint AS seq,
           format('%s: %s is charged %s times, %s for %s', kind, day, coalesce(c.owed, 0), coalesce(c.amount, 0), coalesce(d.fee, 0)) AS detail
      FROM (SELECT o.id, k.kind, o.day,
                   CASE k.kind WHEN 'subscription' THEN o.fee ELSE -o.fee * o.discount_rate END AS fee
              FROM (SELECT s.id, n::date AS day, s.discount_end, s.discount_rate,
                           CASE WHEN n < s.trial_end THEN 0 ELSE day_fee(s.cost, s.anchor_date, s.billing_interval, n::date) END AS fee
                      FROM subscription_segment AS s,
                           generate_series(s.start_date, least(s.end_date, s.charged_until) - 1, interval '1 day') AS n
                     WHERE s.charged_until IS NOT NULL) AS o
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
