-- What calls add up to is as large as it is: no sum is checked against what one number of a call may be, since a flush
-- can blame no call for it. A sum that is the largest its column holds says "so much or more": what is compared with it
-- would say something false, and is not.
ALTER TABLE usage_daily DROP CONSTRAINT usage_daily_requests_check, DROP CONSTRAINT usage_daily_tokens_check,
    DROP CONSTRAINT usage_daily_credits_check, DROP CONSTRAINT usage_daily_usage_amount_check,
    DROP CONSTRAINT usage_daily_billed_credits_check, DROP CONSTRAINT usage_daily_billed_usage_amount_check;
ALTER TABLE usage_tier DROP CONSTRAINT usage_tier_first_unit_check, DROP CONSTRAINT usage_tier_quantity_check,
    DROP CONSTRAINT usage_tier_billed_quantity_check;
ALTER TABLE known_drift DROP CONSTRAINT known_drift_difference_check;
ALTER TABLE invoice_basis DROP CONSTRAINT invoice_basis_quantity_check;

CREATE OR REPLACE VIEW invariant_rollup AS
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
    -- the units of a day are all of them priced, and billed as they are priced
    SELECT 'tenant:' || tenant_id, NULL, format('day %s service %s: %s units, priced %s; billed %s, priced %s', day, service_id,
           d.usage_amount, coalesce(t.quantity, 0), d.billed_usage_amount, coalesce(t.billed, 0))
      FROM (SELECT * FROM usage_daily WHERE usage_amount <> 0 OR billed_usage_amount <> 0) AS d
      FULL JOIN (SELECT tenant_id, day, service_id, sum(quantity) AS quantity, sum(billed_quantity) AS billed,
                        max(abs(quantity)) AS largest
                   FROM usage_tier GROUP BY 1, 2, 3 HAVING sum(quantity) <> 0 OR sum(billed_quantity) <> 0) AS t
           USING (tenant_id, day, service_id)
     WHERE (coalesce(d.usage_amount, 0), coalesce(d.billed_usage_amount, 0)) <> (coalesce(t.quantity, 0), coalesce(t.billed, 0))
       AND greatest(abs(d.usage_amount), t.largest) < 9223372036854775807;

CREATE OR REPLACE VIEW invariant_invoice AS
    SELECT 'invoice:' || i.id AS account, NULL::bigint AS seq, format('total %s, lines %s', i.total_amount, coalesce(l.amount, 0)) AS detail
      FROM invoice AS i LEFT JOIN (SELECT invoice_id, sum(amount) AS amount FROM invoice_line
                                    WHERE kind <> 'credits_consumed' GROUP BY 1) AS l ON l.invoice_id = i.id
     WHERE i.total_amount <> coalesce(l.amount, 0)
    UNION ALL
    -- what a day is marked as billed is what invoices in force billed of it
    SELECT 'tenant:' || tenant_id, NULL, format('day %s service %s: billed %s/%s, invoices %s/%s', day, service_id,
           d.billed_usage_amount, d.billed_credits, coalesce(b.units, 0), coalesce(b.credits, 0))
      FROM (SELECT * FROM usage_daily WHERE billed_usage_amount <> 0 OR billed_credits > 0) AS d
      FULL JOIN (SELECT b.tenant_id, b.day, b.service_id, sum(b.quantity) FILTER (WHERE b.kind = 'usage') AS units,
                        sum(b.quantity) FILTER (WHERE b.kind = 'credits_consumed') AS credits
                   FROM invoice_basis AS b JOIN invoice AS i ON i.id = b.invoice_id AND i.status = 'finalized'
                  WHERE b.day IS NOT NULL GROUP BY 1, 2, 3) AS b USING (tenant_id, day, service_id)
     WHERE (coalesce(d.billed_usage_amount, 0), coalesce(d.billed_credits, 0))
           <> (coalesce(b.units, 0), coalesce(b.credits, 0))
       AND coalesce(greatest(abs(d.usage_amount), abs(d.credits)), 0) < 9223372036854775807
    UNION ALL
    -- credit notes give back no more of a line than it billed
    SELECT 'invoice:' || n.corrects_id, NULL, format('line %s of %s gives back %s', c.corrects_position, max(l.amount), -sum(c.amount))
      FROM invoice AS n JOIN invoice_line AS c ON c.invoice_id = n.id AND c.corrects_position IS NOT NULL
      JOIN invoice_line AS l ON l.invoice_id = n.corrects_id AND l.position = c.corrects_position
     WHERE n.status <> 'void' GROUP BY n.corrects_id, c.corrects_position HAVING abs(sum(c.amount)) > abs(max(l.amount))
    UNION ALL
    SELECT 'invoice:' || series, NULL, format('%s numbers given out, the last is %s', count(*), max(last_number))
      FROM (SELECT s.series, s.last_number FROM invoice_sequence AS s
              LEFT JOIN invoice AS i ON i.number LIKE s.series || '-%') AS numbered
     GROUP BY series HAVING count(*) <> max(last_number);

-- Calls that a span of the roll-ups does not add up to, either way. Of refused ones there are as many rows as are told,
-- never more than are counted. Nothing is said of a time whose calls were dropped, or whose rows of this span were.
CREATE VIEW invariant_usage_adds_up AS
    SELECT 'organization:' || organization_id AS account, NULL::bigint AS seq,
           format('%s of %s: %s calls and %s refused in the journal, %s and %s in its roll-up', span, start, c.requests,
                  c.refused, r.requests, r.refused) AS detail
      FROM (SELECT s.span, date_trunc(s.unit, created_at, 'UTC') AS start, organization_id,
                   count(*) FILTER (WHERE NOT refused) AS requests, count(*) FILTER (WHERE refused) AS refused,
                   sum(tokens) AS tokens, sum(credits) AS credits, sum(units) AS units, coalesce(sum(cost), 0) AS cost
              FROM call, (VALUES ('hour', 'hour'), ('day', 'day'), ('week', 'week'), ('month', 'month'),
                                 ('team_hour', 'hour'), ('team_day', 'day')) AS s (span, unit)
             GROUP BY 1, 2, 3) AS c
      FULL JOIN (SELECT span, start, organization_id, sum(requests) AS requests, sum(refused) AS refused,
                        sum(tokens) AS tokens, sum(credits) AS credits, sum(units) AS units, sum(cost) AS cost,
                        max(abs(tokens)) AS most_tokens, max(abs(credits)) AS most_credits, max(abs(units)) AS most_units,
                        max(abs(cost)) AS most_cost
                   FROM usage_rollup GROUP BY 1, 2, 3) AS r USING (span, start, organization_id)
     WHERE start >= coalesce((SELECT max(since) FROM kept_since WHERE ledger IN ('call', 'usage_rollup_' || span)), '-infinity')
       AND ((coalesce(c.requests, 0), CASE WHEN most_tokens = 9223372036854775807 THEN r.tokens ELSE coalesce(c.tokens, 0) END,
             CASE WHEN most_credits = 9223372036854775807 THEN r.credits ELSE coalesce(c.credits, 0) END,
             CASE WHEN most_units = 9223372036854775807 THEN r.units ELSE coalesce(c.units, 0) END,
             CASE WHEN most_cost = 9223372036854775807 THEN r.cost ELSE coalesce(c.cost, 0) END)
            IS DISTINCT FROM (r.requests, r.tokens, r.credits, r.units, r.cost)
            OR coalesce(c.refused, 0) > r.refused);
