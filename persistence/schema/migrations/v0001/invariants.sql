-- Views that must be empty. Each answers (account, seq, detail); seq is null where none applies.

-- Seqs known to be missing, with the reason on file. A letter that was driven again is missing no more.
CREATE VIEW listed_gap AS
    SELECT 'tenant:' || tenant_id AS account, token_seq AS seq FROM dead_letter
     WHERE token_seq > 0 AND resolution IS DISTINCT FROM 'redriven'
    UNION SELECT 'credits:' || organization_id, credit_seq FROM dead_letter
     WHERE credit_seq > 0 AND resolution IS DISTINCT FROM 'redriven'
    UNION SELECT 'spend:' || organization_id, spend_seq FROM dead_letter
     WHERE spend_seq > 0 AND resolution IS DISTINCT FROM 'redriven'
    UNION SELECT account, generate_series(first_seq, last_seq) FROM lost_event;

-- The three accounts of every owner as one list of movements; `delta` is null in an unlimited account.
CREATE VIEW account_movement AS
    SELECT 'tenant:' || tenant_id AS account, epoch, seq, created_at AS at,
           CASE direction WHEN 'IN' THEN amount ELSE -amount END AS delta, total_remaining AS balance
      FROM token_ledger
    UNION ALL
    SELECT 'credits:' || organization_id, epoch, seq, "timestamp", -credits_used, balance_after FROM credit_transaction
    UNION ALL
    SELECT 'credits:' || organization_id, epoch, seq, created_at, amount, balance_after FROM credit_posting
    UNION ALL
    SELECT 'spend:' || organization_id, epoch, seq, "timestamp", spend, spent_after FROM feature_usage;

CREATE VIEW invariant_chain AS
    SELECT account, seq, format('%s then %s by %s', previous, balance, delta) AS detail
      FROM (SELECT *, lag(balance) OVER w AS previous, lag(seq) OVER w AS previous_seq,
                   date_trunc('month', at AT TIME ZONE 'UTC') AS month,
                   lag(date_trunc('month', at AT TIME ZONE 'UTC')) OVER w AS previous_month
              FROM account_movement WINDOW w AS (PARTITION BY account ORDER BY seq)) AS m
     WHERE (seq = 1 OR previous_seq = seq - 1)
       AND NOT (previous IS NULL AND balance IS NULL)
       -- spend starts again from zero each month; a drift on file changed the balance just before
       AND coalesce(balance, 0) <> delta + CASE
           WHEN account LIKE 'spend:%' AND previous_month < month THEN 0 ELSE coalesce(previous, 0) END
           + coalesce((SELECT d.difference FROM known_drift AS d
                        WHERE d.account = m.account AND d.seq = m.seq - 1), 0);

CREATE VIEW invariant_gapless AS
    SELECT account, seq, format('follows %s', previous) AS detail
      FROM (SELECT account, seq, coalesce(lag(seq) OVER (PARTITION BY account ORDER BY seq), 0) AS previous
              FROM account_movement) AS m
     WHERE seq <> previous + 1
       AND seq - previous - 1 IS DISTINCT FROM (SELECT count(*) FROM listed_gap AS g
            WHERE g.account = m.account AND g.seq > m.previous AND g.seq < m.seq)
    UNION ALL
    SELECT account, max(seq), format('an epoch runs backwards')
      FROM (SELECT account, seq, epoch, lag(epoch) OVER (PARTITION BY account ORDER BY seq) AS before
              FROM account_movement) AS m
     WHERE before > epoch GROUP BY account;

CREATE VIEW invariant_quota AS
    WITH last AS (
        SELECT DISTINCT ON (tenant_id) tenant_id, seq, total_remaining, epoch, cycle
          FROM token_ledger ORDER BY tenant_id, seq DESC
    ), used AS (
        SELECT tenant_id, cycle, sum(amount) AS amount FROM token_ledger
         WHERE transaction_type = 'consume' GROUP BY tenant_id, cycle
    )
    SELECT 'tenant:' || q.tenant_id AS account, q.last_seq AS seq,
           format('used %s of %s, remaining %s of %s, seq %s of %s', q.tokens_used, coalesce(u.amount, 0),
                  q.tokens_remaining, l.total_remaining, q.last_seq, l.seq) AS detail
      FROM tenant_quota AS q
      LEFT JOIN last AS l USING (tenant_id)
      LEFT JOIN used AS u ON u.tenant_id = q.tenant_id AND u.cycle = q.cycle
     WHERE NOT EXISTS (SELECT FROM listed_gap AS g WHERE g.account = 'tenant:' || q.tenant_id)
       AND (q.last_seq <> coalesce(l.seq, 0)
            OR (l.seq IS NOT NULL AND (q.tokens_used <> coalesce(u.amount, 0)
                OR q.tokens_remaining IS DISTINCT FROM l.total_remaining
                OR q.epoch < l.epoch OR q.cycle <> l.cycle)));

CREATE VIEW invariant_blocked AS
    SELECT 'tenant:' || q.tenant_id AS account, q.last_seq AS seq,
           format('is_blocked %s, by hand %s, remaining %s', q.is_blocked, q.manual_block, q.tokens_remaining) AS detail
      FROM tenant_quota AS q LEFT JOIN token_plan AS p ON p.id = q.plan_id
     -- a policy edited since is judged at the account's next movement
     WHERE q.last_seq > 0 AND (p.id IS NULL OR p.updated_at <= q.updated_at)
       AND q.is_blocked <> (q.manual_block
            OR (p.id IS NOT NULL AND coalesce(q.tokens_remaining, 1) <= 0 AND p.overage_policy <> 'bill'));

CREATE VIEW invariant_credits AS
    SELECT 'credits:' || o.id AS account, o.credit_last_seq AS seq,
           format('balance %s, postings %s, uses %s, drift %s', o.credit_balance, coalesce(p.amount, 0),
                  coalesce(u.amount, 0), coalesce(d.amount, 0)) AS detail
      FROM organization AS o
      LEFT JOIN LATERAL (SELECT sum(difference) AS amount FROM known_drift
                          WHERE account = 'credits:' || o.id AND seq < o.credit_last_seq) AS d ON true
      LEFT JOIN (SELECT organization_id, sum(amount) AS amount FROM credit_posting GROUP BY 1) AS p ON p.organization_id = o.id
      LEFT JOIN (SELECT organization_id, sum(credits_used) AS amount FROM credit_transaction GROUP BY 1) AS u ON u.organization_id = o.id
     WHERE NOT EXISTS (SELECT FROM listed_gap AS g WHERE g.account = 'credits:' || o.id)
       AND o.credit_balance <> coalesce(p.amount, 0) - coalesce(u.amount, 0) + coalesce(d.amount, 0);

CREATE VIEW invariant_request_once AS
    SELECT 'tenant:' || tenant_id AS account, max(seq) AS seq, format('request %s has %s rows in token_ledger', request_id, count(*)) AS detail
      FROM token_ledger WHERE transaction_type = 'consume' AND request_id IS NOT NULL
     GROUP BY tenant_id, request_id HAVING count(*) > 1
    UNION ALL
    SELECT 'credits:' || organization_id, max(seq), format('request %s has %s rows in credit_transaction', request_id, count(*))
      FROM credit_transaction WHERE request_id IS NOT NULL AND NOT coalesce(metadata ? 'corrects', false)
     GROUP BY organization_id, request_id HAVING count(*) > 1
    UNION ALL
    SELECT 'spend:' || organization_id, max(seq), format('request %s has %s rows in feature_usage', request_id, count(*))
      FROM feature_usage WHERE request_id IS NOT NULL AND NOT coalesce(metadata ? 'corrects', false)
     GROUP BY organization_id, request_id HAVING count(*) > 1;

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
     WHERE (d.requests, d.tokens, d.credits, d.usage_amount) IS DISTINCT FROM (c.requests, c.tokens, c.credits, c.units)
    UNION ALL
    -- the units of a day are all of them priced, and billed as they are priced
    SELECT 'tenant:' || tenant_id, NULL, format('day %s service %s: %s units, priced %s; billed %s, priced %s', day, service_id,
           d.usage_amount, coalesce(t.quantity, 0), d.billed_usage_amount, coalesce(t.billed, 0))
      FROM (SELECT * FROM usage_daily WHERE usage_amount <> 0 OR billed_usage_amount <> 0) AS d
      FULL JOIN (SELECT tenant_id, day, service_id, sum(quantity) AS quantity, sum(billed_quantity) AS billed
                   FROM usage_tier GROUP BY 1, 2, 3 HAVING sum(quantity) <> 0 OR sum(billed_quantity) <> 0) AS t
           USING (tenant_id, day, service_id)
     WHERE (coalesce(d.usage_amount, 0), coalesce(d.billed_usage_amount, 0)) <> (coalesce(t.quantity, 0), coalesce(t.billed, 0));

-- Every credit that left is allocated once, and no addition gives more than it has.
CREATE VIEW invariant_allocations AS
    SELECT 'credits:' || organization_id AS account, seq,
           format('allocated %s of %s used', coalesce(a.amount, 0), coalesce(u.credits_used, 0)) AS detail
      FROM (SELECT organization_id, seq, sum(amount) AS amount FROM credit_allocation GROUP BY 1, 2) AS a
      FULL JOIN (SELECT t.organization_id, t.seq, t.credits_used FROM credit_transaction AS t
                   JOIN organization AS o ON o.id = t.organization_id AND t.seq <= o.allocated_seq
                  WHERE t.credits_used > 0
                 UNION ALL SELECT p.organization_id, p.seq, -p.amount FROM credit_posting AS p
                   JOIN organization AS o ON o.id = p.organization_id AND p.seq <= o.allocated_seq
                  WHERE p.amount < 0 AND p.kind <> 'correction') AS u USING (organization_id, seq)
     WHERE u.credits_used IS DISTINCT FROM a.amount
    UNION ALL
    SELECT 'credits:' || c.organization_id, NULL,
           format('addition %s of %s gave %s, noted %s', c.id, c.credits_added, coalesce(a.amount, 0), c.spent)
      FROM credit_addition AS c
      LEFT JOIN (SELECT credit_addition_id AS id, sum(amount) AS amount FROM credit_allocation GROUP BY 1) AS a USING (id)
     WHERE coalesce(a.amount, 0) <> c.spent OR c.spent > greatest(c.credits_added, 0);

CREATE VIEW invariant_invoice AS
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
