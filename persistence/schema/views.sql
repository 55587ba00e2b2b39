-- Today's views, those that others read first. `invariant_…` must be empty: what must always hold of the
-- rows.

-- Seqs known to be missing, with the reason on file. A letter that was driven again is missing no more.
CREATE VIEW listed_gap AS
    SELECT 'tenant:' || tenant_id AS account, token_seq AS seq FROM dead_letter
     WHERE token_seq > 0 AND resolution IS DISTINCT FROM 'redriven'
    UNION SELECT 'credits:' || organization_id, credit_seq FROM dead_letter
     WHERE credit_seq > 0 AND resolution IS DISTINCT FROM 'redriven'
    UNION SELECT 'spend:' || organization_id, spend_seq FROM dead_letter
     WHERE spend_seq > 0 AND resolution IS DISTINCT FROM 'redriven'
    UNION SELECT account, generate_series(first_seq, last_seq) FROM lost_event;

CREATE VIEW account_movement AS
    SELECT 'tenant:' || tenant_id AS account, epoch, seq, created_at AS at,
           CASE direction WHEN 'IN' THEN amount ELSE -amount END AS delta, total_remaining AS balance,
           seq AS first_seq, 1::bigint AS movements
      FROM token_ledger
    UNION ALL
    SELECT 'credits:' || organization_id, epoch, seq, "timestamp", -credits_used, balance_after, seq, 1 FROM credit_transaction
    UNION ALL
    SELECT 'credits:' || organization_id, epoch, seq, created_at, amount, balance_after, seq, 1 FROM credit_posting
    UNION ALL
    SELECT 'spend:' || organization_id, epoch, seq, "timestamp", spend, spent_after, seq, 1 FROM feature_usage
    UNION ALL
    SELECT account, epoch, last_seq, at, amount, balance, first_seq, last_seq - first_seq + 1 FROM archived_run;

CREATE VIEW invariant_chain AS
    SELECT account, seq, format('%s then %s by %s', previous, balance, delta) AS detail
      FROM (SELECT *, lag(balance) OVER w AS previous, lag(seq) OVER w AS previous_seq, account LIKE 'spend:%'
                   AND lag(date_trunc('month', at AT TIME ZONE 'UTC')) OVER w < date_trunc('month', at AT TIME ZONE 'UTC') AS begins
              FROM account_movement WINDOW w AS (PARTITION BY account ORDER BY seq)) AS m
     WHERE (first_seq = 1 OR previous_seq = first_seq - 1)
       AND NOT (previous IS NULL AND balance IS NULL)
       -- spend starts again from zero each month; a drift on file changed the balance just before
       AND coalesce(balance, 0) <> delta + CASE
           WHEN begins THEN 0 ELSE coalesce(previous, 0) END
           + coalesce((SELECT sum(d.difference) FROM known_drift AS d
                        WHERE d.account = m.account AND d.seq < m.seq
                          AND d.seq >= CASE WHEN begins THEN m.first_seq ELSE m.first_seq - 1 END), 0);

CREATE VIEW invariant_gapless AS
    SELECT account, seq, format('follows %s', previous) AS detail
      FROM (SELECT account, seq, first_seq, coalesce(lag(seq) OVER (PARTITION BY account ORDER BY seq), 0) AS previous
              FROM account_movement) AS m
     WHERE first_seq <> previous + 1
       AND first_seq - previous - 1 IS DISTINCT FROM (SELECT count(*) FROM listed_gap AS g
            WHERE g.account = m.account AND g.seq > m.previous AND g.seq < m.first_seq)
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
        -- A correction may be of a call in a cycle before, or of a version that took none for use.
        SELECT tenant_id, cycle, sum(least) AS least, sum(most) AS most
          FROM (SELECT tenant_id, cycle, amount AS least, amount AS most
                  FROM token_ledger WHERE transaction_type = 'consume'
                UNION ALL
                SELECT tenant_id, cycle, CASE direction WHEN 'IN' THEN -amount ELSE 0 END,
                       CASE direction WHEN 'IN' THEN 0 ELSE amount END
                  FROM token_ledger WHERE transaction_type = 'adjust' AND metadata ? 'corrects'
                UNION ALL
                -- those of tenants are all uses
                SELECT split_part(account, ':', 2)::bigint, cycle, -amount, -amount FROM archived_run
                 WHERE account LIKE 'tenant:%') AS uses
         GROUP BY tenant_id, cycle
    )
    SELECT 'tenant:' || q.tenant_id AS account, q.last_seq AS seq,
           format('used %s of %s, remaining %s of %s, seq %s of %s', q.tokens_used, coalesce(u.most, 0),
                  q.tokens_remaining, l.total_remaining, q.last_seq, l.seq) AS detail
      FROM tenant_quota AS q
      LEFT JOIN last AS l USING (tenant_id)
      LEFT JOIN used AS u ON u.tenant_id = q.tenant_id AND u.cycle = q.cycle
     WHERE NOT EXISTS (SELECT FROM listed_gap AS g WHERE g.account = 'tenant:' || q.tenant_id)
       AND (q.last_seq <> coalesce(l.seq, 0)
            OR (l.seq IS NOT NULL AND ((q.tokens_used NOT BETWEEN coalesce(u.least, 0) AND coalesce(u.most, 0)
                    AND NOT EXISTS (SELECT FROM known_drift AS d WHERE d.account = 'tenant:' || q.tenant_id))
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
      LEFT JOIN (SELECT organization_id, sum(credits_used) AS amount
                   FROM (SELECT organization_id, credits_used FROM credit_transaction
                         UNION ALL
                         SELECT split_part(account, ':', 2)::bigint, -amount FROM archived_run
                          WHERE account LIKE 'credits:%') AS uses
                  GROUP BY 1) AS u ON u.organization_id = o.id
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

-- Every credit that left is allocated once, and no addition gives more than it has.
CREATE VIEW invariant_allocations AS
    SELECT 'credits:' || organization_id AS account, seq,
           format('allocated %s of %s used', coalesce(a.amount, 0), coalesce(u.credits_used, 0)) AS detail
      FROM (SELECT organization_id, seq, sum(amount) AS amount FROM credit_allocation AS a
             WHERE NOT EXISTS (SELECT FROM archived_run AS r WHERE r.account = 'credits:' || a.organization_id
                                  AND r.last_seq >= a.seq AND r.first_seq <= a.seq)
             GROUP BY 1, 2) AS a
      FULL JOIN (SELECT t.organization_id, t.seq, t.credits_used FROM credit_transaction AS t
                   JOIN organization AS o ON o.id = t.organization_id AND t.seq <= o.allocated_seq
                  WHERE t.credits_used > 0
                 UNION ALL SELECT p.organization_id, p.seq, -p.amount FROM credit_posting AS p
                   JOIN organization AS o ON o.id = p.organization_id AND p.seq <= o.allocated_seq
                  WHERE p.amount < 0 AND p.kind <> 'correction') AS u USING (organization_id, seq)
     WHERE u.credits_used IS DISTINCT FROM a.amount
    UNION ALL
    SELECT r.account, r.last_seq, format('since %s: allocated %s of %s used', r.first_seq, coalesce(a.amount, 0), r.taken)
      FROM archived_run AS r
      LEFT JOIN LATERAL (SELECT sum(c.amount) AS amount FROM credit_allocation AS c
                          WHERE c.organization_id = split_part(r.account, ':', 2)::bigint
                            AND c.seq BETWEEN r.first_seq AND r.last_seq) AS a ON true
     WHERE r.account LIKE 'credits:%' AND r.taken <> coalesce(a.amount, 0)
    UNION ALL
    SELECT 'credits:' || c.organization_id, NULL,
           format('addition %s of %s gave %s, noted %s', c.id, c.credits_added, coalesce(a.amount, 0), c.spent)
      FROM credit_addition AS c
      LEFT JOIN (SELECT credit_addition_id AS id, sum(amount) AS amount FROM credit_allocation GROUP BY 1) AS a USING (id)
     WHERE coalesce(a.amount, 0) <> c.spent OR c.spent > greatest(c.credits_added, 0);

CREATE VIEW invariant_carried AS
    SELECT 'credits:' || o.id AS account, o.credit_last_seq AS seq,
           format('%s nano-credits ahead, uses carried %s', o.credit_ahead, coalesce(u.amount, 0)) AS detail
      FROM organization AS o
      LEFT JOIN (SELECT organization_id, sum(carried) AS amount
                   FROM (SELECT organization_id, carried FROM credit_transaction
                         UNION ALL
                         SELECT split_part(account, ':', 2)::bigint, carried FROM archived_run
                          WHERE account LIKE 'credits:%') AS uses
                  GROUP BY 1) AS u ON u.organization_id = o.id
     WHERE NOT EXISTS (SELECT FROM listed_gap AS g WHERE g.account = 'credits:' || o.id)
       AND NOT EXISTS (SELECT FROM known_drift AS d WHERE d.account = 'credits:' || o.id)
       AND o.credit_ahead <> coalesce(u.amount, 0);

-- Calls that a span of the roll-ups does not add up to, either way. Of refused ones there are as many rows as
-- are told, never more than are counted. Nothing is said of a time whose calls were dropped, or whose rows of
-- this span were.
CREATE VIEW invariant_usage_adds_up AS
    SELECT 'organization:' || organization_id AS account, NULL::bigint AS seq,
           format('%s of %s: %s calls and %s refused in the journal, %s and %s in its roll-up', span, start, c.requests,
                  c.refused, r.requests, r.refused) AS detail
      FROM (SELECT s.span, CASE WHEN s.unit = 'half_week'
                   THEN greatest(date_trunc('week', created_at, 'UTC'), date_trunc('week', created_at - interval '72 hours', 'UTC') + interval '72 hours')
                   ELSE date_trunc(s.unit, created_at, 'UTC') END AS start, organization_id,
                   count(*) FILTER (WHERE NOT refused) AS requests, count(*) FILTER (WHERE refused) AS refused,
                   sum(tokens) AS tokens, sum(credits) AS credits, sum(units) AS units, coalesce(sum(cost), 0) AS cost
              FROM call, (VALUES ('hour', 'hour'), ('day', 'day'), ('half_week', 'half_week'), ('week', 'week'),
                                 ('month', 'month'), ('team_hour', 'hour'), ('team_day', 'day'),
                                 ('key_day', 'day'), ('model_hour', 'hour')) AS s (span, unit)
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

CREATE VIEW invariant_budgets AS
    SELECT 'budget:' || b.id AS account, NULL::bigint AS seq,
           format('since %s: %s used, calls come to %s', s.start, u.used, c.used) AS detail
      FROM budget AS b JOIN organization AS o ON o.id = b.organization_id
     CROSS JOIN LATERAL (SELECT min(start) AS start FROM budget_use
              WHERE budget_id = b.id AND start > greatest(
                    b.updated_at + interval '1 minute',
                    (SELECT since FROM kept_since WHERE ledger = 'call'))) AS s
     CROSS JOIN LATERAL (SELECT sum(used + reset) AS used,
                                max(greatest(abs(used), abs(reset))) AS largest
               FROM budget_use WHERE budget_id = b.id AND start >= s.start) AS u
     CROSS JOIN LATERAL (
               SELECT coalesce(sum(amount) FILTER (WHERE route IS DISTINCT FROM 'events'), 0) AS used,
                      coalesce(sum(amount), 0) AS with_events
                 FROM (SELECT organization_id, tenant_id, api_key_id, project_id, service_id, created_at,
                              route, refused,
                              CASE WHEN b.unit = 'tokens' THEN tokens + amended
                                   WHEN currency = o.currency THEN cost - rerated END AS amount
                         FROM call) AS call
                WHERE organization_id = o.id AND created_at >= s.start AND NOT refused
                  AND (b.tenant_id IS NULL OR tenant_id = b.tenant_id)
                  AND (b.api_key_id IS NULL OR api_key_id = b.api_key_id)
                  AND (b.project_id IS NULL OR project_id = b.project_id)
                  AND (b.service_id IS NULL OR service_id = b.service_id)) AS c
     WHERE b.unit IN ('money', 'tokens') AND b.mode = 'enforce' AND b."user" IS NULL AND b.model IS NULL
       AND b.tool IS NULL AND b.server IS NULL AND b.tags = '{}' AND b.deleted_at IS NULL
       AND b."window" <> 'rolling'
       AND u.used NOT BETWEEN c.used AND c.with_events
       AND (b.unit = 'money' OR u.largest < 9007199254740991);

-- Of days whose rows are archived the roll-up stands for itself, ledger by ledger: one may be kept longer
-- than another. How many requests there were is known while all three have their rows.
CREATE VIEW invariant_rollup AS
    WITH since AS (
        SELECT coalesce(max(since) FILTER (WHERE ledger = 'token_ledger'), '-infinity') AS tokens,
               coalesce(max(since) FILTER (WHERE ledger = 'credit_transaction'), '-infinity') AS credits,
               coalesce(max(since) FILTER (WHERE ledger = 'feature_usage'), '-infinity') AS units
          FROM kept_since
    ), counted AS (
        SELECT tenant_id, (at AT TIME ZONE 'UTC')::date AS day, service_id, sum(tokens) AS tokens, sum(credits) AS credits,
               sum(units) AS units, count(DISTINCT request_id) AS requests
          FROM (SELECT tenant_id, created_at AS at, coalesce(service_id, 0) AS service_id, amount AS tokens, 0 AS credits, 0 AS units, request_id
                  FROM token_ledger
                 WHERE transaction_type = 'consume' AND created_at >= (SELECT since.tokens FROM since)
                UNION ALL
                SELECT tenant_id, "timestamp", coalesce(feature_id, 0), 0, credits_used, 0,
                       CASE WHEN NOT coalesce(metadata ? 'corrects', false) THEN request_id END
                  FROM credit_transaction WHERE "timestamp" >= (SELECT since.credits FROM since)
                UNION ALL
                SELECT tenant_id, "timestamp", coalesce(feature_id, 0), 0, 0, usage_amount,
                       CASE WHEN NOT coalesce(metadata ? 'corrects', false) THEN request_id END
                  FROM feature_usage WHERE "timestamp" >= (SELECT since.units FROM since)) AS movement
         GROUP BY 1, 2, 3
    )
    SELECT 'tenant:' || tenant_id AS account, NULL::bigint AS seq,
           format('day %s service %s: roll-up %s/%s/%s/%s, rows %s/%s/%s/%s', day, service_id,
                  d.requests, d.tokens, d.credits, d.usage_amount, c.requests, c.tokens, c.credits, c.units) AS detail
      FROM counted AS c FULL JOIN usage_daily AS d USING (tenant_id, day, service_id)
     CROSS JOIN (SELECT (tokens AT TIME ZONE 'UTC')::date AS tokens, (credits AT TIME ZONE 'UTC')::date AS credits,
                        (units AT TIME ZONE 'UTC')::date AS units FROM since) AS s
     WHERE (day >= greatest(s.tokens, s.credits, s.units) AND d.requests IS DISTINCT FROM coalesce(c.requests, 0))
        OR (day >= s.tokens AND d.tokens IS DISTINCT FROM
            CASE WHEN abs(d.tokens) = 9223372036854775807 THEN d.tokens ELSE coalesce(c.tokens, 0) END)
        OR (day >= s.credits AND d.credits IS DISTINCT FROM
            CASE WHEN abs(d.credits) = 9223372036854775807 THEN d.credits ELSE coalesce(c.credits, 0) END)
        OR (day >= s.units AND d.usage_amount IS DISTINCT FROM
            CASE WHEN abs(d.usage_amount) = 9223372036854775807 THEN d.usage_amount ELSE coalesce(c.units, 0) END)
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
    -- a line in force comes to its charges, and a void one comes to nothing
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

-- Each day's fee is told once (OFFSET), for both kinds.
CREATE VIEW invariant_days AS
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

-- A document comes to what was paid, applied and is left of it; an invoice is paid where nothing is left to
-- pay; what is paid and applied is of documents in force, of one organization and currency.
CREATE VIEW invariant_payments AS
    WITH due AS (
        SELECT i.id, i.organization_id, i.currency, i.kind, i.status, i.payment_status, i.uncollectible_at, i.used_up,
               coalesce(p.amount, 0) AS paid,
               coalesce(a.amount, 0) - coalesce(g.amount, 0) AS applied,
               i.total_amount - coalesce(p.amount, 0) - coalesce(a.amount, 0) + coalesce(g.amount, 0) AS rest
          FROM invoice AS i
          LEFT JOIN (SELECT invoice_id, sum(amount) AS amount FROM payment GROUP BY 1) AS p ON p.invoice_id = i.id
          LEFT JOIN (SELECT invoice_id, sum(amount) AS amount FROM note_application GROUP BY 1) AS a ON a.invoice_id = i.id
          LEFT JOIN (SELECT note_id, sum(amount) AS amount FROM note_application GROUP BY 1) AS g ON g.note_id = i.id
    )
    SELECT 'invoice:' || id AS account, NULL::bigint AS seq, format('is %s, and %s is left to pay', payment_status, rest) AS detail
      FROM due WHERE status = 'finalized' AND kind = 'invoice' AND ((payment_status = 'paid') <> (rest <= 0) OR rest < 0
        OR (payment_status = 'uncollectible') <> (rest > 0 AND uncollectible_at IS NOT NULL))
    UNION ALL
    SELECT 'invoice:' || id, NULL, format('is a note, of which %s is applied and %s paid back, and %s is left', applied, paid, rest)
      FROM due WHERE status = 'finalized' AND kind = 'credit_note' AND (rest > 0 OR paid > 0 OR applied > 0 OR used_up AND rest < 0)
    UNION ALL
    SELECT 'invoice:' || id, NULL, format('is %s, and %s of it is paid and %s applied', status, paid, applied)
      FROM due WHERE status <> 'finalized' AND (paid <> 0 OR applied <> 0)
    UNION ALL
    SELECT 'invoice:' || p.invoice_id, NULL, format('payment %s of %s %s is not of it', p.id, p.currency, p.amount)
      FROM payment AS p JOIN invoice AS i ON i.id = p.invoice_id
     WHERE (p.organization_id, p.currency, p.amount > 0)
           <> (i.organization_id, i.currency, (i.kind = 'invoice') = (p.corrects_id IS NULL))
    UNION ALL
    SELECT 'invoice:' || p.invoice_id, NULL, format('payment %s of %s, given back %s', p.id, p.amount, -sum(b.amount))
      FROM payment AS p JOIN payment AS b ON b.corrects_id = p.id
     GROUP BY p.id HAVING abs(sum(b.amount)) > abs(p.amount) OR bool_or(b.invoice_id <> p.invoice_id)
    UNION ALL
    SELECT 'invoice:' || a.note_id, NULL, format('%s of it is applied to invoice %s', sum(a.amount), a.invoice_id)
      FROM note_application AS a JOIN invoice AS n ON n.id = a.note_id JOIN invoice AS i ON i.id = a.invoice_id
     GROUP BY a.note_id, a.invoice_id HAVING sum(a.amount) < 0
        OR bool_or((a.organization_id, a.organization_id, a.currency, a.currency, n.kind, i.kind)
                   <> (n.organization_id, i.organization_id, n.currency, i.currency, 'credit_note', 'invoice'));

CREATE VIEW checkpoint_in_force AS
    SELECT c.* FROM account_checkpoint AS c
     WHERE NOT EXISTS (SELECT FROM account_checkpoint AS n
                        WHERE n.account = c.account AND n.last_seq = c.last_seq AND n.version > c.version);

CREATE VIEW invariant_checkpoints AS
    WITH moved AS (
        SELECT c.account, c.last_seq, c.month, m.seq, m.at, m.delta, m.movements,
               max(m.seq) FILTER (WHERE m.balance IS NULL)
                   OVER (PARTITION BY c.account, c.last_seq) AS unlimited_seq
          FROM checkpoint_in_force AS c
          JOIN account_movement AS m ON m.account = c.account AND m.seq > c.first_seq AND m.seq <= c.last_seq
    ), counted AS (
        SELECT account, last_seq, sum(movements)::bigint AS movements,
               sum(delta) FILTER (WHERE CASE
                   WHEN account LIKE 'spend:%' THEN at >= month::timestamp AT TIME ZONE 'UTC'
                   ELSE unlimited_seq IS NULL OR seq > unlimited_seq END) AS amount
          FROM moved GROUP BY account, last_seq
    )
    SELECT account, last_seq AS seq, format('since %s: %s movements of %s, kept are %s of %s', c.first_seq,
           coalesce(n.movements, 0), coalesce(n.amount, 0), c.movements, c.amount) AS detail
      FROM checkpoint_in_force AS c LEFT JOIN counted AS n USING (account, last_seq)
     WHERE (c.movements, c.amount) <> (coalesce(n.movements, 0), coalesce(n.amount, 0))
    UNION ALL
    SELECT account, last_seq, format('begins behind %s, the one before ends at %s', first_seq, before)
      FROM (SELECT account, last_seq, first_seq,
                   coalesce(lag(last_seq) OVER (PARTITION BY account ORDER BY last_seq), 0) AS before
              FROM checkpoint_in_force) AS c
     WHERE first_seq <> before;

-- Tokens that were told of calls behind them, by when those were used; in the ledger they are of a type, and
-- say a reason.
CREATE VIEW told_use AS
    SELECT tenant_id, used_at, request_id, true AS is_more, late_tokens, quota_tokens, 'consume' AS as_type, NULL::text AS reason,
           NULL::timestamptz AS counted_at
      FROM use_event WHERE late_tokens > 0 OR quota_tokens > 0
    UNION ALL
    SELECT tenant_id, used_at, request_id, direction = 'OUT', late_tokens, quota_tokens, 'adjust', reason, counted_at
      FROM amendment WHERE late_tokens > 0 OR quota_tokens > 0;

-- Tokens that a tenant was beyond its plan at the end of each span: from a reset or a change of plan to the
-- next one. `next_seq` is null of the span that runs. The price is the first one there was for them in their
-- cycle and plan. Spans that ended with nothing owed are left out, unless something was charged while they
-- ran, or was told later. Later reports, charges and corrections count in its cycle, from the day of use on.
-- The same holds for rows that came into the ledger behind a span of the cycle that runs: the span it was
-- used in has it as if it had been reported in time. A taken-back event is of the span it was used in, and
-- of those that counted it when it was reported.
CREATE VIEW overage_span AS
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
               WHERE u.tenant_id = s.tenant_id
                 AND (u.used_at >= coalesce(began.at, s.created_at) AND u.used_at < coalesce(s.next_at, 'infinity')
                      OR u.counted_at >= coalesce(began.at, s.created_at) AND u.counted_at < coalesce(s.next_at, 'infinity'))) AS told
     CROSS JOIN LATERAL (SELECT (w.payload->>'plan_id')::bigint AS plan_id, g.created_at AS at, (w.payload->>'overage_unit_price')::numeric AS price
               FROM token_ledger AS g JOIN control_write AS w ON w.id = g.control_write_id AND w.verb = 'plan'
              WHERE g.tenant_id = s.tenant_id AND g.seq <= s.first_seq AND g.transaction_type <> 'consume'
              ORDER BY g.seq DESC LIMIT 1) AS given
     CROSS JOIN LATERAL (SELECT v.unit_price
               FROM (SELECT plan_id, since, overage_policy, unit_price, lead(since) OVER w AS till,
                            lag(since) OVER w IS NULL AS is_first
                       FROM token_plan_price WHERE plan_id = given.plan_id WINDOW w AS (ORDER BY since)) AS v
              WHERE v.overage_policy = 'bill' AND v.unit_price IS NOT NULL AND (v.since <= e.created_at OR v.is_first)
                AND coalesce(v.till, 'infinity') > greatest(began.at, given.at)
              ORDER BY v.since LIMIT 1) AS p
     WHERE s.next_seq IS NULL OR s.left_with < 0 OR told.more > 0
        OR EXISTS (SELECT FROM charge AS c WHERE c.source = 'token_ledger' AND c.tenant_id = s.tenant_id
                      AND c.place = s.cycle AND c.source_id = s.first_seq);

-- Owed amounts, from their sources, are those of the charges, billed or not. Credit notes stand aside.
CREATE VIEW invariant_owed AS
    WITH charged AS (
        SELECT organization_id, kind, source, source_id, tenant_id, coalesce(service_id, 0) AS service_id, period_start,
               unit_price, quantity, amount
          FROM charge WHERE reason NOT IN ('credited', 'credit_void')
    )
    -- units at a price, by the day they were supplied on
    SELECT 'tenant:' || tenant_id AS account, NULL::bigint AS seq,
           format('day %s service %s at %s: %s units noted as charged, charges of %s units and %s', start, service_id, unit_price,
                  coalesce(t.charged_quantity, 0), coalesce(c.quantity, 0), coalesce(c.amount, 0)) AS detail
      FROM (SELECT tenant_id, service_id, unit_price, day::timestamp AT TIME ZONE 'UTC' AS start,
                   sum(charged_quantity) AS charged_quantity
              FROM (SELECT tenant_id, service_id, unit_price, day, charged_quantity FROM usage_tier
                    UNION ALL SELECT tenant_id, service_id, unit_price, day, -charged_quantity FROM usage_told
                    UNION ALL SELECT tenant_id, service_id, unit_price, supplied_on, charged_quantity FROM usage_told) AS u
             WHERE charged_quantity <> 0 GROUP BY 1, 2, 3, 4 HAVING sum(charged_quantity) <> 0) AS t
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
    -- credits used beyond the balance, by day and price: the notes, against charges and open debt
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
      FROM plan_end WHERE amount > 0 GROUP BY organization_id, tenant_id, began, paid_from, cycle_ends_at
    HAVING sum(amount) > max(worth) + 0.000000001 * count(*);

-- The discount of each day of use that no credit note touched is its use times the rate of its month.
CREATE VIEW invariant_service_discounts AS
    SELECT 'tenant:' || u.tenant_id AS account, NULL::bigint AS seq,
           format('day %s service %s: %s is off use of %s, by a discount of %s', u.period_start, u.service_id, -u.discounted, u.used,
                  coalesce(d.rate, 0)) AS detail
      FROM (SELECT organization_id, tenant_id, service_id, period_start,
                   coalesce(sum(amount) FILTER (WHERE kind = 'usage'), 0) AS used,
                   coalesce(sum(amount) FILTER (WHERE kind = 'discount'), 0) AS discounted
              FROM charge WHERE kind IN ('usage', 'discount') AND service_id IS NOT NULL
             GROUP BY 1, 2, 3, 4 HAVING NOT bool_or(reason = 'credited')) AS u
      LEFT JOIN LATERAL (SELECT rate, is_due FROM service_discount AS s
                          WHERE s.organization_id = u.organization_id AND s.service_id = u.service_id
                            AND s.month <= (u.period_start AT TIME ZONE 'UTC')::date ORDER BY s.month DESC LIMIT 1) AS d ON true
     WHERE u.discounted <> -u.used * coalesce(d.rate, 0) AND d.is_due IS NOT true;

-- Withdrawals of an addition come to its amount.
CREATE VIEW invariant_drawn AS
    SELECT 'credits:' || a.organization_id AS account, NULL::bigint AS seq,
           format('addition %s gave %s, drawn %s', a.id, a.spent, coalesce(d.credits, 0)) AS detail
      FROM credit_addition AS a
      LEFT JOIN (SELECT credit_addition_id AS id, sum(credits) AS credits FROM credit_drawdown GROUP BY 1) AS d USING (id)
     WHERE a.spent <> coalesce(d.credits, 0);
