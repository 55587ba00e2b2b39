-- What is billed of a day's units is said by charges from here on.
DROP VIEW invariant_rollup;
DROP VIEW invariant_invoice;
ALTER TABLE usage_daily DROP COLUMN billed_usage_amount;

CREATE VIEW invariant_rollup AS
    WITH counted AS (
        SELECT tenant_id, (at AT TIME ZONE 'UTC')::date AS day, service_id, sum(tokens) AS tokens, sum(credits) AS credits,
               sum(units) AS units, count(DISTINCT request_id) AS requests
          FROM (SELECT tenant_id, created_at AS at, coalesce(service_id, 0) AS service_id, amount AS tokens, 0 AS credits, 0 AS units, request_id
                  FROM token_ledger WHERE transaction_type = 'consume'
                UNION ALL
                SELECT tenant_id, "timestamp", coalesce(feature_id, 0), 0, credits_used, 0,
                       CASE WHEN NOT coalesce(metadata ? 'corrects', false) THEN request_id END
                  FROM credit_transaction
                UNION ALL
                SELECT tenant_id, "timestamp", coalesce(feature_id, 0), 0, 0, usage_amount,
                       CASE WHEN NOT coalesce(metadata ? 'corrects', false) THEN request_id END
                  FROM feature_usage) AS movement
         GROUP BY 1, 2, 3
    )
    SELECT 'tenant:' || tenant_id AS account, NULL::bigint AS seq,
           format('day %s service %s: roll-up %s/%s/%s/%s, rows %s/%s/%s/%s', day, service_id,
                  d.requests, d.tokens, d.credits, d.usage_amount, c.requests, c.tokens, c.credits, c.units) AS detail
      FROM counted AS c FULL JOIN usage_daily AS d USING (tenant_id, day, service_id)
     WHERE (d.requests, d.tokens, d.credits, d.usage_amount) IS DISTINCT FROM
           (c.requests, CASE WHEN abs(d.tokens) = 9223372036854775807 THEN d.tokens ELSE c.tokens END,
            CASE WHEN abs(d.credits) = 9223372036854775807 THEN d.credits ELSE c.credits END,
            CASE WHEN abs(d.usage_amount) = 9223372036854775807 THEN d.usage_amount ELSE c.units END)
    UNION ALL
    -- the units of a day are all of them priced
    SELECT 'tenant:' || tenant_id, NULL, format('day %s service %s: %s units, priced %s', day, service_id,
           d.usage_amount, coalesce(t.quantity, 0))
      FROM (SELECT * FROM usage_daily WHERE usage_amount <> 0) AS d
      FULL JOIN (SELECT tenant_id, day, service_id, sum(quantity) AS quantity, max(abs(quantity)) AS largest
                   FROM usage_tier GROUP BY 1, 2, 3 HAVING sum(quantity) <> 0) AS t USING (tenant_id, day, service_id)
     WHERE coalesce(d.usage_amount, 0) <> coalesce(t.quantity, 0)
       AND greatest(abs(d.usage_amount), t.largest) < 9223372036854775807;

CREATE VIEW invariant_invoice AS
    SELECT 'invoice:' || i.id AS account, NULL::bigint AS seq, format('total %s, lines %s', i.total_amount, coalesce(l.amount, 0)) AS detail
      FROM invoice AS i LEFT JOIN (SELECT invoice_id, sum(amount) AS amount FROM invoice_line
                                    WHERE kind <> 'credits_consumed' GROUP BY 1) AS l ON l.invoice_id = i.id
     WHERE i.total_amount <> coalesce(l.amount, 0)
    UNION ALL
    -- the credits of a day that are marked as told are those that invoices in force told
    SELECT 'tenant:' || tenant_id, NULL, format('day %s service %s: told %s credits, invoices %s', day, service_id,
           d.billed_credits, coalesce(b.credits, 0))
      FROM (SELECT * FROM usage_daily WHERE billed_credits > 0) AS d
      FULL JOIN (SELECT b.tenant_id, b.day, b.service_id, sum(b.quantity) AS credits
                   FROM invoice_basis AS b JOIN invoice AS i ON i.id = b.invoice_id AND i.status = 'finalized'
                  WHERE b.kind = 'credits_consumed' GROUP BY 1, 2, 3) AS b USING (tenant_id, day, service_id)
     WHERE coalesce(d.billed_credits, 0) <> coalesce(b.credits, 0)
       AND coalesce(abs(d.credits), 0) < 9223372036854775807
    UNION ALL
    -- credit notes give back no more of a line than it billed
    SELECT 'invoice:' || n.corrects_id, NULL, format('line %s of %s gives back %s', c.corrects_position, max(l.amount), -sum(c.amount))
      FROM invoice AS n JOIN invoice_line AS c ON c.invoice_id = n.id AND c.corrects_position IS NOT NULL
      JOIN invoice_line AS l ON l.invoice_id = n.corrects_id AND l.position = c.corrects_position
     WHERE n.status <> 'void' GROUP BY n.corrects_id, c.corrects_position HAVING abs(sum(c.amount)) > abs(max(l.amount))
    UNION ALL
    -- a line in force is what its charges come to, and what was made void comes to nothing
    SELECT 'invoice:' || i.id, l.position, format('charges of %s on a line of %s', coalesce(c.amount, 0), l.exact)
      FROM invoice AS i JOIN invoice_line AS l ON l.invoice_id = i.id
      LEFT JOIN (SELECT invoice_id, line, sum(amount) AS amount FROM charge GROUP BY 1, 2) AS c
           ON c.invoice_id = i.id AND c.line = l.position
     WHERE i.status = 'finalized' AND l.exact IS DISTINCT FROM coalesce(c.amount, 0) AND l.exact IS NOT NULL
    UNION ALL
    SELECT 'invoice:' || i.id, NULL, format('is %s and has charges of %s', i.status, sum(c.amount))
      FROM invoice AS i JOIN charge AS c ON c.invoice_id = i.id WHERE i.status <> 'finalized'
     GROUP BY i.id HAVING i.status = 'draft' OR sum(c.amount) <> 0
    UNION ALL
    SELECT 'invoice:' || series, NULL, format('%s numbers given out, the last is %s', count(*), max(last_number))
      FROM (SELECT s.series, s.last_number FROM invoice_sequence AS s
              LEFT JOIN invoice AS i ON i.number LIKE s.series || '-%') AS numbered
     GROUP BY series HAVING count(*) <> max(last_number);

-- What is owed, told from its sources, is what there are charges of, billed or not. Credit notes stand aside.
CREATE VIEW invariant_owed AS
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
    -- credits that were sold
    SELECT 'credits:' || coalesce(a.organization_id, c.organization_id), NULL,
           format('addition %s of %s has charges of %s', id, coalesce(a.amount, 0), coalesce(c.amount, 0))
      FROM (SELECT a.organization_id, a.id, a.credits_added * a.unit_cost AS amount FROM credit_addition AS a
              JOIN credit_posting AS p ON p.organization_id = a.organization_id AND p.credit_addition_id = a.id
               AND p.kind = 'addition'
             WHERE a.category = 'paid' AND a.unit_cost <> 0) AS a
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
     WHERE next_seq IS NOT NULL AND (owed, owed * unit_price) <> (coalesce(c.quantity, 0), coalesce(c.amount, 0));

-- Each day of a segment is charged once while it is part of it, and not at all once it is not; a credit note may give
-- a charged one back. As far as days were charged.
CREATE VIEW invariant_days AS
    SELECT 'segment:' || id AS account, NULL::bigint AS seq,
           format('%s is charged %s times, %s for %s', day, coalesce(c.owed, 0), coalesce(c.amount, 0), coalesce(d.fee, 0)) AS detail
      FROM (SELECT s.id, n::date AS day, day_fee(s.cost, s.anchor_date, s.billing_interval, n::date) AS fee
              FROM subscription_segment AS s,
                   generate_series(s.start_date, least(s.end_date, s.charged_until) - 1, interval '1 day') AS n
             WHERE s.charged_until IS NOT NULL) AS d
      FULL JOIN (SELECT source_id AS id, (period_start AT TIME ZONE 'UTC')::date AS day, sum(quantity) AS net, sum(amount) AS net_amount,
                        sum(quantity) FILTER (WHERE reason NOT IN ('credited', 'credit_void')) AS owed,
                        sum(amount) FILTER (WHERE reason NOT IN ('credited', 'credit_void')) AS amount
                   FROM charge WHERE source = 'subscription_segment' GROUP BY 1, 2) AS c USING (id, day)
     WHERE CASE WHEN d.id IS NULL THEN (c.net, c.net_amount) <> (0, 0)
                ELSE c.net IS NULL OR c.net NOT BETWEEN 0 AND 1 OR (c.owed, c.amount) <> (1, d.fee) END;
