-- What invoices in force have billed, as charges that are billed; what they left out follows by itself. Their lines keep
-- what they said: nothing of their rounding is carried on.
CREATE TEMPORARY TABLE billed ON COMMIT DROP AS
    SELECT b.*, i.organization_id, i.currency, row_number() OVER (PARTITION BY b.invoice_id, b.kind ORDER BY b.id) AS nth
      FROM invoice_basis AS b JOIN invoice AS i ON i.id = b.invoice_id AND i.status = 'finalized'
     WHERE b.kind <> 'credits_consumed';
-- Lines of these kinds were written in the order of what they billed.
CREATE TEMPORARY TABLE billed_line ON COMMIT DROP AS
    SELECT l.invoice_id, l.position, l.kind, l.unit_price, l.service_id, l.amount,
           row_number() OVER (PARTITION BY l.invoice_id, l.kind ORDER BY l.position) AS nth
      FROM invoice_line AS l JOIN invoice AS i ON i.id = l.invoice_id AND i.status = 'finalized' AND i.kind = 'invoice';

INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency, source,
                    source_id, fact, invoice_id, line)
SELECT b.organization_id, 'subscription', d.day::timestamp AT TIME ZONE 'UTC', (d.day + 1)::timestamp AT TIME ZONE 'UTC',
       sign(b.quantity), d.fee, d.fee * sign(b.quantity), b.currency, 'subscription_segment', s.id,
       format('basis:%s:%s', b.id, d.day), b.invoice_id, l.position
  FROM billed AS b JOIN subscription_segment AS s ON s.id = b.segment_id
  LEFT JOIN billed_line AS l ON l.invoice_id = b.invoice_id AND l.kind = b.kind AND l.nth = b.nth
 CROSS JOIN LATERAL (SELECT n::date AS day, day_fee(s.cost, s.anchor_date, s.billing_interval, n::date) AS fee
                       FROM generate_series(b.start_date, b.end_date - 1, interval '1 day') AS n) AS d
 WHERE b.kind = 'subscription';
UPDATE subscription_segment AS s
   SET charged_until = (SELECT max(b.end_date) FROM billed AS b WHERE b.kind = 'subscription' AND b.segment_id = s.id);
-- Days between billed ones that no invoice had.
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency, source,
                    source_id, fact)
SELECT s.organization_id, 'subscription', d.day::timestamp AT TIME ZONE 'UTC', (d.day + 1)::timestamp AT TIME ZONE 'UTC',
       1, d.fee, d.fee, o.currency, 'subscription_segment', s.id, format('segment:%s:%s:0', s.id, d.day)
  FROM subscription_segment AS s JOIN organization AS o ON o.id = s.organization_id
 CROSS JOIN LATERAL (SELECT n::date AS day, day_fee(s.cost, s.anchor_date, s.billing_interval, n::date) AS fee
                       FROM generate_series(s.start_date, least(s.end_date, s.charged_until) - 1, interval '1 day') AS n) AS d
 WHERE s.charged_until IS NOT NULL
   AND (SELECT coalesce(sum(c.quantity), 0) FROM charge AS c WHERE c.source = 'subscription_segment'
           AND c.source_id = s.id AND c.period_start = d.day::timestamp AT TIME ZONE 'UTC') = 0;

INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency, source,
                    source_id, fact, tenant_id, place, invoice_id, line)
SELECT b.organization_id, 'overage', i.period_start::timestamp AT TIME ZONE 'UTC', i.period_end::timestamp AT TIME ZONE 'UTC',
       b.quantity, l.unit_price, b.quantity * l.unit_price, b.currency, 'token_ledger',
       coalesce((SELECT min(s.first_seq) FROM overage_span AS s WHERE s.tenant_id = b.tenant_id AND s.cycle = b.cycle
                    AND s.unit_price = l.unit_price), 0),
       format('basis:%s', b.id), b.tenant_id, b.cycle, b.invoice_id, l.position
  FROM billed AS b JOIN invoice AS i ON i.id = b.invoice_id
  JOIN billed_line AS l ON l.invoice_id = b.invoice_id AND l.kind = b.kind AND l.nth = b.nth
 WHERE b.kind = 'overage';

INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency, source,
                    source_id, fact, invoice_id, line)
SELECT b.organization_id, b.kind, date_trunc('day', a."timestamp", 'UTC'), date_trunc('day', a."timestamp", 'UTC') + interval '1 day',
       a.credits_added, a.unit_cost, a.credits_added * a.unit_cost, b.currency, 'credit_addition', a.id,
       format('addition:%s', a.id), b.invoice_id, l.position
  FROM billed AS b JOIN credit_addition AS a ON a.id = b.credit_addition_id
  LEFT JOIN billed_line AS l ON l.invoice_id = b.invoice_id AND l.kind = b.kind AND l.nth = b.nth
 WHERE b.kind = 'credits_purchased';

INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency, source,
                    fact, tenant_id, service_id, place, invoice_id, line)
SELECT b.organization_id, b.kind, b.day::timestamp AT TIME ZONE 'UTC', (b.day + 1)::timestamp AT TIME ZONE 'UTC',
       b.quantity, b.unit_price, b.quantity * b.unit_price, b.currency, 'usage_tier', format('basis:%s', b.id),
       b.tenant_id, b.service_id, t.first_unit, b.invoice_id,
       (SELECT min(l.position) FROM billed_line AS l WHERE l.invoice_id = b.invoice_id AND l.kind = 'usage'
           AND l.service_id IS NOT DISTINCT FROM b.service_id AND l.unit_price = b.unit_price)
  FROM billed AS b
  LEFT JOIN usage_tier AS t ON t.tenant_id = b.tenant_id AND t.day = b.day AND t.service_id = coalesce(b.service_id, 0)
       AND t.unit_price = b.unit_price
 WHERE b.kind = 'usage' AND b.quantity <> 0;

-- What credit notes gave back: of whole lines the charges, of parts their money.
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency, source,
                    source_id, reason, corrects_id, fact, tenant_id, service_id, place, invoice_id, line)
SELECT c.organization_id, c.kind, c.period_start, c.period_end,
       CASE WHEN n.amount = -l.amount THEN -c.quantity ELSE 0 END, c.unit_price,
       CASE WHEN n.amount = -l.amount THEN -c.amount ELSE round(c.amount * n.amount / l.amount, 9) END,
       c.currency, c.source, c.source_id, 'credited', c.id, format('credited:%s:%s', n.invoice_id, c.id), c.tenant_id,
       c.service_id, c.place, n.invoice_id, n.position
  FROM invoice_line AS n JOIN invoice AS i ON i.id = n.invoice_id AND i.status = 'finalized' AND i.kind = 'credit_note'
  JOIN invoice_line AS l ON l.invoice_id = i.corrects_id AND l.position = n.corrects_position AND l.amount <> 0
  JOIN charge AS c ON c.invoice_id = l.invoice_id AND c.line = l.position AND c.reason = 'fact';

-- Credits that were sold and tokens beyond plans that ended, and no invoice had. Days and units that it had not are
-- charged by the keeper's first hour.
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency, source,
                    source_id, fact)
SELECT a.organization_id, 'credits_purchased', date_trunc('day', a."timestamp", 'UTC'),
       date_trunc('day', a."timestamp", 'UTC') + interval '1 day', a.credits_added, a.unit_cost,
       a.credits_added * a.unit_cost, o.currency, 'credit_addition', a.id, format('addition:%s', a.id)
  FROM credit_posting AS p JOIN credit_addition AS a ON a.id = p.credit_addition_id AND p.kind = 'addition'
  JOIN organization AS o ON o.id = a.organization_id
 WHERE a.category = 'paid' AND a.unit_cost IS NOT NULL
ON CONFLICT (fact) DO NOTHING;
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency, source,
                    source_id, fact, tenant_id, place)
SELECT s.organization_id, 'overage', date_trunc('day', s.began, 'UTC'), date_trunc('day', s.ended, 'UTC') + interval '1 day',
       s.owed - s.charged, s.unit_price, (s.owed - s.charged) * s.unit_price, o.currency, 'token_ledger', s.first_seq,
       format('tokens:%s:%s:%s', s.tenant_id, s.first_seq, s.last_seq), s.tenant_id, s.cycle
  FROM (SELECT *, greatest(beyond - coalesce(max(beyond) OVER (PARTITION BY tenant_id, cycle ORDER BY first_seq
                      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0), 0) AS owed,
               (SELECT coalesce(sum(c.quantity), 0) FROM charge AS c
                 WHERE c.source = 'token_ledger' AND c.tenant_id = v.tenant_id AND c.source_id = v.first_seq
                   AND c.place = v.cycle AND c.reason <> 'credited') AS charged
          FROM overage_span AS v) AS s
  JOIN organization AS o ON o.id = s.organization_id
 WHERE s.next_seq IS NOT NULL AND s.owed <> s.charged;
