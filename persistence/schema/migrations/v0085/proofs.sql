-- Up to where the rows of an account were proven, and how the account stands there. What is read afterwards begins behind
-- it. Written by whoever found nothing behind the last one; an account has one, and `checkpoints` says of how many it is:
-- where one of them was added up again since, it proves nothing any more.
CREATE TABLE account_proof (
    account TEXT NOT NULL,
    organization_id BIGINT NOT NULL,
    -- A movement that is there; 0 where there was none.
    last_seq BIGINT NOT NULL,
    epoch BIGINT,
    at TIMESTAMP WITH TIME ZONE,
    balance BIGINT,
    -- Of tenants: the cycle at that movement, and what it had used by then. Of credits: nano-credits carried.
    cycle BIGINT,
    used NUMERIC NOT NULL,
    carried NUMERIC NOT NULL,
    checkpoints BIGINT NOT NULL,
    -- What is behind it was not before this, as far as was known.
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    proved_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT account_proof_pkey PRIMARY KEY (account)
);
CREATE INDEX account_proof_since_idx ON account_proof (since);

CREATE VIEW proof_in_force AS
    SELECT p.* FROM account_proof AS p
     WHERE p.checkpoints = (SELECT count(*) FROM account_checkpoint AS c
                             WHERE c.account = p.account AND c.first_seq < p.last_seq);

-- Each account with its proof; without one everything is behind, and `since` is -infinity. `head` is how many movements
-- it is noted to have.
CREATE VIEW account_proved AS
    SELECT h.*, coalesce(p.last_seq, 0) AS last_seq, p.epoch, p.at, p.balance, p.cycle, coalesce(p.used, 0) AS used,
           coalesce(p.carried, 0) AS carried, coalesce(p.since, '-infinity') AS since
      FROM (SELECT 'tenant' AS kind, t.organization_id, t.id AS owner, 'tenant:' || t.id AS account,
                   coalesce(q.last_seq, 0) AS head
              FROM tenant AS t LEFT JOIN tenant_quota AS q ON q.tenant_id = t.id
            UNION ALL SELECT 'credits', id, id, 'credits:' || id, credit_last_seq FROM organization
            UNION ALL SELECT 'spend', id, id, 'spend:' || id, spend_last_seq FROM organization) AS h
      LEFT JOIN LATERAL (SELECT * FROM proof_in_force WHERE account = h.account OFFSET 0) AS p ON true;

-- The same, with `since` as it is: where not as many movements are behind as there have to be, one came late, of a time
-- before. Then all partitions are looked at for the oldest of them. What OFFSET 0 ends is read for one account after the
-- other, of those partitions alone that begin behind its `since`.
CREATE VIEW account_behind AS
    SELECT a.organization_id, a.kind, a.owner, a.account, a.head, a.last_seq, a.epoch, a.at, a.balance, a.cycle, a.used,
           a.carried, least(a.since, late.at) AS since
      FROM account_proved AS a
     CROSS JOIN LATERAL (
           SELECT count(*) AS movements FROM (
                SELECT created_at AS at FROM token_ledger WHERE tenant_id = a.owner AND seq > a.last_seq AND created_at >= a.since) AS m
            WHERE a.since > '-infinity' OFFSET 0) AS n
     CROSS JOIN LATERAL (
           SELECT min(at) AS at FROM (
                SELECT created_at AS at FROM token_ledger WHERE tenant_id = a.owner AND seq > a.last_seq) AS m
            WHERE a.since > '-infinity' AND n.movements <> a.head - a.last_seq OFFSET 0) AS late
     WHERE a.kind = 'tenant'
    UNION ALL
    SELECT a.organization_id, a.kind, a.owner, a.account, a.head, a.last_seq, a.epoch, a.at, a.balance, a.cycle, a.used,
           a.carried, least(a.since, late.at) AS since
      FROM account_proved AS a
     CROSS JOIN LATERAL (
           SELECT count(*) AS movements FROM (
                SELECT "timestamp" AS at FROM credit_transaction WHERE organization_id = a.owner AND seq > a.last_seq AND "timestamp" >= a.since
                UNION ALL SELECT created_at FROM credit_posting WHERE organization_id = a.owner AND seq > a.last_seq AND created_at >= a.since) AS m
            WHERE a.since > '-infinity' OFFSET 0) AS n
     CROSS JOIN LATERAL (
           SELECT min(at) AS at FROM (
                SELECT "timestamp" AS at FROM credit_transaction WHERE organization_id = a.owner AND seq > a.last_seq
                UNION ALL SELECT created_at FROM credit_posting WHERE organization_id = a.owner AND seq > a.last_seq) AS m
            WHERE a.since > '-infinity' AND n.movements <> a.head - a.last_seq OFFSET 0) AS late
     WHERE a.kind = 'credits'
    UNION ALL
    SELECT a.organization_id, a.kind, a.owner, a.account, a.head, a.last_seq, a.epoch, a.at, a.balance, a.cycle, a.used,
           a.carried, least(a.since, late.at) AS since
      FROM account_proved AS a
     CROSS JOIN LATERAL (
           SELECT count(*) AS movements FROM (
                SELECT "timestamp" AS at FROM feature_usage WHERE organization_id = a.owner AND seq > a.last_seq AND "timestamp" >= a.since) AS m
            WHERE a.since > '-infinity' OFFSET 0) AS n
     CROSS JOIN LATERAL (
           SELECT min(at) AS at FROM (
                SELECT "timestamp" AS at FROM feature_usage WHERE organization_id = a.owner AND seq > a.last_seq) AS m
            WHERE a.since > '-infinity' AND n.movements <> a.head - a.last_seq OFFSET 0) AS late
     WHERE a.kind = 'spend';

-- Movements behind the proofs of their accounts, and what was proven before them: that is told as 0 movements.
CREATE VIEW movement_behind AS
    SELECT b.organization_id, b.account, m.* FROM account_behind AS b CROSS JOIN LATERAL (
           SELECT epoch, seq, created_at AS at, CASE direction WHEN 'IN' THEN amount ELSE -amount END AS delta, total_remaining AS balance,
                  seq AS first_seq, 1::bigint AS movements
             FROM token_ledger WHERE tenant_id = b.owner AND seq > b.last_seq AND created_at >= b.since OFFSET 0) AS m
     WHERE b.kind = 'tenant'
    UNION ALL
    SELECT b.organization_id, b.account, m.* FROM account_behind AS b CROSS JOIN LATERAL (
           SELECT epoch, seq, "timestamp" AS at, -credits_used AS delta, balance_after AS balance,
                  seq AS first_seq, 1::bigint AS movements
             FROM credit_transaction WHERE organization_id = b.owner AND seq > b.last_seq AND "timestamp" >= b.since OFFSET 0) AS m
     WHERE b.kind = 'credits'
    UNION ALL
    SELECT b.organization_id, b.account, m.* FROM account_behind AS b CROSS JOIN LATERAL (
           SELECT epoch, seq, created_at AS at, amount AS delta, balance_after AS balance,
                  seq AS first_seq, 1::bigint AS movements
             FROM credit_posting WHERE organization_id = b.owner AND seq > b.last_seq AND created_at >= b.since OFFSET 0) AS m
     WHERE b.kind = 'credits'
    UNION ALL
    SELECT b.organization_id, b.account, m.* FROM account_behind AS b CROSS JOIN LATERAL (
           SELECT epoch, seq, "timestamp" AS at, spend AS delta, spent_after AS balance,
                  seq AS first_seq, 1::bigint AS movements
             FROM feature_usage WHERE organization_id = b.owner AND seq > b.last_seq AND "timestamp" >= b.since OFFSET 0) AS m
     WHERE b.kind = 'spend'
    UNION ALL
    SELECT b.organization_id, r.account, r.epoch, r.last_seq, r.at, r.amount, r.balance, r.first_seq, r.last_seq - r.first_seq + 1
      FROM archived_run AS r JOIN account_proved AS b ON b.account = r.account AND r.last_seq > b.last_seq
    UNION ALL
    SELECT organization_id, account, epoch, last_seq, at, 0, balance, last_seq, 0 FROM account_proved WHERE last_seq > 0;

-- The invariants as they are of what is behind. Each answers (organization_id, account, seq, detail), and must be empty.

-- Spend begins at zero each month, whatever drift is on file behind the last movement of the month before.
CREATE VIEW behind_chain AS
    SELECT organization_id, account, seq, format('%s then %s by %s', previous, balance, delta) AS detail
      FROM (SELECT *, lag(balance) OVER w AS previous, lag(seq) OVER w AS previous_seq, account LIKE 'spend:%'
                   AND lag(date_trunc('month', at AT TIME ZONE 'UTC')) OVER w < date_trunc('month', at AT TIME ZONE 'UTC') AS begins
              FROM movement_behind WINDOW w AS (PARTITION BY organization_id, account ORDER BY seq)) AS m
     WHERE movements > 0 AND (first_seq = 1 OR previous_seq = first_seq - 1)
       AND NOT (previous IS NULL AND balance IS NULL)
       AND coalesce(balance, 0) <> delta + CASE
           WHEN begins THEN 0 ELSE coalesce(previous, 0) END
           + coalesce((SELECT sum(d.difference) FROM known_drift AS d
                        WHERE d.account = m.account AND d.seq < m.seq
                          AND d.seq >= CASE WHEN begins THEN m.first_seq ELSE m.first_seq - 1 END), 0);

CREATE VIEW behind_gapless AS
    SELECT organization_id, account, seq, CASE WHEN before > epoch THEN 'an epoch runs backwards'
           ELSE format('follows %s', previous) END AS detail
      FROM (SELECT *, lag(seq, 1, 0::bigint) OVER w AS previous, lag(epoch) OVER w AS before
              FROM movement_behind WINDOW w AS (PARTITION BY organization_id, account ORDER BY seq)) AS m
     WHERE before > epoch
        OR (movements > 0 AND first_seq <> previous + 1
            AND first_seq - previous - 1 IS DISTINCT FROM (SELECT count(*) FROM listed_gap AS g
                 WHERE g.account = m.account AND g.seq > m.previous AND g.seq < m.first_seq));

-- Checkpoints follow each other, and what was proven is what they come to.
CREATE VIEW behind_checkpoints AS
    SELECT a.organization_id, a.account, c.last_seq AS seq,
           format('begins behind %s, the one before ends at %s', c.first_seq, c.before) AS detail
      FROM account_proved AS a CROSS JOIN LATERAL (
           SELECT last_seq, first_seq, lag(last_seq, 1, 0::bigint) OVER (ORDER BY last_seq) AS before
             FROM checkpoint_in_force WHERE account = a.account OFFSET 0) AS c
     WHERE c.first_seq <> c.before
    UNION ALL
    SELECT a.organization_id, a.account, a.last_seq,
           format('%s was proven, checkpoints come to %s', a.balance, c.amount + coalesce(d.amount, 0))
      FROM account_proved AS a CROSS JOIN LATERAL (
           SELECT coalesce(sum(amount) FILTER (WHERE counts), 0) AS amount,
                  CASE WHEN a.kind = 'spend' THEN min(since_seq) FILTER (WHERE counts) ELSE max(since_seq) END AS since_seq
             FROM (SELECT amount, since_seq, CASE WHEN a.kind = 'spend' THEN month >= (date_trunc('month', a.at, 'UTC') AT TIME ZONE 'UTC')::date
                          ELSE last_seq >= coalesce(max(since_seq) OVER (), 0) END AS counts
                     FROM checkpoint_in_force WHERE account = a.account AND first_seq < a.last_seq) AS k OFFSET 0) AS c
      LEFT JOIN LATERAL (SELECT sum(difference) AS amount FROM known_drift
                          WHERE account = a.account AND seq >= coalesce(c.since_seq, 0) + (a.kind = 'spend' AND c.since_seq > 0)::integer
                            AND seq < a.last_seq) AS d ON true
     WHERE a.last_seq > 0 AND a.balance IS NOT NULL AND a.balance <> c.amount + coalesce(d.amount, 0)
       AND NOT EXISTS (SELECT FROM listed_gap AS g WHERE g.account = a.account);

-- A drift that was repaired is made good in what remains, not in what was used.
CREATE VIEW behind_quota AS
    SELECT b.organization_id, b.account, q.last_seq AS seq,
           format('used %s of %s, remaining %s of %s, seq %s of %s', q.tokens_used, u.amount,
                  q.tokens_remaining, l.balance, q.last_seq, l.seq) AS detail
      FROM account_behind AS b JOIN tenant_quota AS q ON q.tenant_id = b.owner
     CROSS JOIN LATERAL (
           SELECT coalesce(sum(amount), 0) + CASE WHEN b.cycle = q.cycle THEN b.used ELSE 0 END AS amount FROM (
                  SELECT amount FROM token_ledger
                   WHERE tenant_id = b.owner AND seq > b.last_seq AND created_at >= b.since
                     AND transaction_type = 'consume' AND cycle = q.cycle
                  UNION ALL
                  SELECT -amount FROM archived_run
                   WHERE account = b.account AND last_seq > b.last_seq AND cycle = q.cycle) AS uses OFFSET 0) AS u
      LEFT JOIN LATERAL (
           SELECT * FROM (
                  (SELECT seq, total_remaining AS balance, epoch, cycle FROM token_ledger
                    WHERE tenant_id = b.owner AND seq > b.last_seq AND created_at >= b.since
                    ORDER BY seq DESC LIMIT 1)
                  UNION ALL
                  SELECT b.last_seq, b.balance, b.epoch, b.cycle WHERE b.last_seq > 0) AS rows
            ORDER BY seq DESC LIMIT 1) AS l ON true
     WHERE b.kind = 'tenant' AND NOT EXISTS (SELECT FROM listed_gap AS g WHERE g.account = b.account)
       AND (q.last_seq <> coalesce(l.seq, 0)
            OR (l.seq IS NOT NULL AND ((q.tokens_used <> u.amount
                    AND NOT EXISTS (SELECT FROM known_drift AS d WHERE d.account = b.account))
                OR q.tokens_remaining IS DISTINCT FROM l.balance
                OR q.epoch < l.epoch OR q.cycle <> l.cycle)));

-- What its movements came to since it was proven; the drift on file is of the places behind that.
CREATE VIEW behind_credits AS
    SELECT b.organization_id, b.account, o.credit_last_seq AS seq,
           format('balance %s, proven %s, since then %s, drift %s', o.credit_balance, coalesce(b.balance, 0), m.amount,
                  coalesce(d.amount, 0)) AS detail
      FROM account_behind AS b JOIN organization AS o ON o.id = b.owner
     CROSS JOIN LATERAL (
           SELECT coalesce(sum(delta), 0) AS amount FROM (
                  SELECT -credits_used AS delta FROM credit_transaction
                   WHERE organization_id = b.owner AND seq > b.last_seq AND "timestamp" >= b.since
                  UNION ALL SELECT amount FROM credit_posting
                   WHERE organization_id = b.owner AND seq > b.last_seq AND created_at >= b.since
                  UNION ALL SELECT amount FROM archived_run
                   WHERE account = b.account AND last_seq > b.last_seq) AS moves OFFSET 0) AS m
      LEFT JOIN LATERAL (SELECT sum(difference) AS amount FROM known_drift
                          WHERE account = b.account AND seq >= b.last_seq AND seq < o.credit_last_seq) AS d ON true
     WHERE b.kind = 'credits' AND NOT EXISTS (SELECT FROM listed_gap AS g WHERE g.account = b.account)
       AND o.credit_balance <> coalesce(b.balance, 0) + m.amount + coalesce(d.amount, 0);

CREATE VIEW behind_carried AS
    SELECT b.organization_id, b.account, o.credit_last_seq AS seq,
           format('%s nano-credits ahead, uses carried %s', o.credit_ahead, b.carried + m.amount) AS detail
      FROM account_behind AS b JOIN organization AS o ON o.id = b.owner
     CROSS JOIN LATERAL (
           SELECT coalesce(sum(carried), 0) AS amount FROM (
                  SELECT carried FROM credit_transaction
                   WHERE organization_id = b.owner AND seq > b.last_seq AND "timestamp" >= b.since
                  UNION ALL SELECT carried FROM archived_run
                   WHERE account = b.account AND last_seq > b.last_seq) AS moves OFFSET 0) AS m
     WHERE b.kind = 'credits' AND NOT EXISTS (SELECT FROM listed_gap AS g WHERE g.account = b.account)
       AND NOT EXISTS (SELECT FROM known_drift AS d WHERE d.account = b.account)
       AND o.credit_ahead <> b.carried + m.amount;

-- When a request began by its id, and the least id of those that began at a moment; null of no moment.
CREATE FUNCTION began_of_id(request_id uuid) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT to_timestamp(('x' || left(replace(request_id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
$$;
CREATE FUNCTION first_id_at(moment timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN isfinite(moment)
           THEN rpad(lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0'), 32, '0')::uuid END
$$;

-- A request with two rows behind; or with one there and one before, if its id says that it began before. Its rows are
-- looked for from a day before it began.
CREATE VIEW behind_request_once AS
    SELECT b.organization_id, b.account, m.seq, format('request %s has %s rows in token_ledger', m.request_id, m.rows) AS detail
      FROM account_behind AS b CROSS JOIN LATERAL (
           SELECT request_id, max(seq) AS seq, count(*) + CASE WHEN request_id < first_id_at(b.since + interval '1 day') THEN (
                  SELECT count(*) FROM token_ledger AS e
                   WHERE e.request_id = r.request_id AND e.tenant_id = b.owner AND e.seq <= b.last_seq
                     AND e.created_at >= began_of_id(r.request_id) - interval '1 day'
                     AND e.transaction_type = 'consume') ELSE 0 END AS rows
             FROM token_ledger AS r WHERE r.tenant_id = b.owner AND seq > b.last_seq AND created_at >= b.since
              AND request_id IS NOT NULL AND transaction_type = 'consume'
            GROUP BY request_id OFFSET 0) AS m
     WHERE b.kind = 'tenant' AND m.rows > 1
    UNION ALL
    SELECT b.organization_id, b.account, m.seq, format('request %s has %s rows in credit_transaction', m.request_id, m.rows) AS detail
      FROM account_behind AS b CROSS JOIN LATERAL (
           SELECT request_id, max(seq) AS seq, count(*) + CASE WHEN request_id < first_id_at(b.since + interval '1 day') THEN (
                  SELECT count(*) FROM credit_transaction AS e
                   WHERE e.request_id = r.request_id AND e.organization_id = b.owner AND e.seq <= b.last_seq
                     AND e."timestamp" >= began_of_id(r.request_id) - interval '1 day'
                     AND NOT coalesce(e.metadata ? 'corrects', false)) ELSE 0 END AS rows
             FROM credit_transaction AS r WHERE r.organization_id = b.owner AND seq > b.last_seq AND "timestamp" >= b.since
              AND request_id IS NOT NULL AND NOT coalesce(metadata ? 'corrects', false)
            GROUP BY request_id OFFSET 0) AS m
     WHERE b.kind = 'credits' AND m.rows > 1
    UNION ALL
    SELECT b.organization_id, b.account, m.seq, format('request %s has %s rows in feature_usage', m.request_id, m.rows) AS detail
      FROM account_behind AS b CROSS JOIN LATERAL (
           SELECT request_id, max(seq) AS seq, count(*) + CASE WHEN request_id < first_id_at(b.since + interval '1 day') THEN (
                  SELECT count(*) FROM feature_usage AS e
                   WHERE e.request_id = r.request_id AND e.organization_id = b.owner AND e.seq <= b.last_seq
                     AND e."timestamp" >= began_of_id(r.request_id) - interval '1 day'
                     AND NOT coalesce(e.metadata ? 'corrects', false)) ELSE 0 END AS rows
             FROM feature_usage AS r WHERE r.organization_id = b.owner AND seq > b.last_seq AND "timestamp" >= b.since
              AND request_id IS NOT NULL AND NOT coalesce(metadata ? 'corrects', false)
            GROUP BY request_id OFFSET 0) AS m
     WHERE b.kind = 'spend' AND m.rows > 1;

-- Since when an organization's days are to be looked at: the first of the month of the oldest row behind.
CREATE VIEW organization_behind AS
    SELECT organization_id, date_trunc('month', min(since), 'UTC') AS since FROM account_behind GROUP BY organization_id;

CREATE VIEW behind_rollup AS
    WITH kept AS (
        SELECT coalesce(max(since) FILTER (WHERE ledger = 'token_ledger'), '-infinity') AS tokens,
               coalesce(max(since) FILTER (WHERE ledger = 'credit_transaction'), '-infinity') AS credits,
               coalesce(max(since) FILTER (WHERE ledger = 'feature_usage'), '-infinity') AS units
          FROM kept_since
    ), compared AS (
        SELECT o.organization_id, m.tenant_id, m.day, m.service_id, max(m.d_requests) AS d_requests, max(m.d_tokens) AS d_tokens,
               max(m.d_credits) AS d_credits, max(m.d_units) AS d_units, count(DISTINCT m.request_id) AS requests,
               coalesce(sum(m.tokens), 0) AS tokens, coalesce(sum(m.credits), 0) AS credits, coalesce(sum(m.units), 0) AS units
          FROM organization_behind AS o CROSS JOIN kept CROSS JOIN LATERAL (
               SELECT t.id AS tenant_id, (l.at AT TIME ZONE 'UTC')::date AS day, coalesce(l.service_id, 0) AS service_id,
                      l.amount AS tokens, 0 AS credits, 0 AS units, l.request_id, NULL::bigint AS d_requests,
                      NULL::bigint AS d_tokens, NULL::bigint AS d_credits, NULL::bigint AS d_units
                 FROM tenant AS t CROSS JOIN LATERAL (
                      SELECT created_at AS at, service_id, amount, request_id FROM token_ledger
                       WHERE tenant_id = t.id AND created_at >= greatest(o.since, kept.tokens)
                         AND transaction_type = 'consume' OFFSET 0) AS l
                WHERE t.organization_id = o.organization_id
               UNION ALL
               SELECT tenant_id, ("timestamp" AT TIME ZONE 'UTC')::date, coalesce(feature_id, 0), 0, credits_used, 0,
                      CASE WHEN NOT coalesce(metadata ? 'corrects', false) THEN request_id END, NULL, NULL, NULL, NULL
                 FROM credit_transaction
                WHERE organization_id = o.organization_id AND "timestamp" >= greatest(o.since, kept.credits)
               UNION ALL
               SELECT tenant_id, ("timestamp" AT TIME ZONE 'UTC')::date, coalesce(feature_id, 0), 0, 0, usage_amount,
                      CASE WHEN NOT coalesce(metadata ? 'corrects', false) THEN request_id END, NULL, NULL, NULL, NULL
                 FROM feature_usage
                WHERE organization_id = o.organization_id AND "timestamp" >= greatest(o.since, kept.units)
               UNION ALL
               SELECT tenant_id, day, service_id, 0, 0, 0, NULL, requests, tokens, credits, usage_amount FROM usage_daily
                WHERE organization_id = o.organization_id AND day >= (o.since AT TIME ZONE 'UTC')::date OFFSET 0) AS m
         GROUP BY o.organization_id, m.tenant_id, m.day, m.service_id
    )
    SELECT organization_id, 'tenant:' || tenant_id AS account, NULL::bigint AS seq,
           format('day %s service %s: roll-up %s/%s/%s/%s, rows %s/%s/%s/%s', day, service_id,
                  d_requests, d_tokens, d_credits, d_units, requests, c.tokens, c.credits, c.units) AS detail
      FROM compared AS c
     CROSS JOIN (SELECT (tokens AT TIME ZONE 'UTC')::date AS tokens, (credits AT TIME ZONE 'UTC')::date AS credits,
                        (units AT TIME ZONE 'UTC')::date AS units FROM kept) AS s
     WHERE (day >= greatest(s.tokens, s.credits, s.units) AND d_requests IS DISTINCT FROM requests)
        OR (day >= s.tokens AND d_tokens IS DISTINCT FROM
            CASE WHEN abs(d_tokens) = 9223372036854775807 THEN d_tokens ELSE c.tokens END)
        OR (day >= s.credits AND d_credits IS DISTINCT FROM
            CASE WHEN abs(d_credits) = 9223372036854775807 THEN d_credits ELSE c.credits END)
        OR (day >= s.units AND d_units IS DISTINCT FROM
            CASE WHEN abs(d_units) = 9223372036854775807 THEN d_units ELSE c.units END)
    UNION ALL
    SELECT o.organization_id, 'tenant:' || m.tenant_id, NULL,
           format('day %s service %s: %s units, priced %s', m.day, m.service_id, sum(m.units), sum(m.priced))
      FROM organization_behind AS o CROSS JOIN LATERAL (
           SELECT tenant_id, day, service_id, usage_amount AS units, 0 AS priced, abs(usage_amount) AS largest FROM usage_daily
            WHERE organization_id = o.organization_id AND day >= (o.since AT TIME ZONE 'UTC')::date
           UNION ALL
           SELECT tenant_id, day, service_id, 0, quantity, abs(quantity) FROM usage_tier
            WHERE organization_id = o.organization_id AND day >= (o.since AT TIME ZONE 'UTC')::date OFFSET 0) AS m
     GROUP BY o.organization_id, m.tenant_id, m.day, m.service_id
    HAVING sum(m.units) <> sum(m.priced) AND max(m.largest) < 9223372036854775807;

CREATE VIEW behind_allocations AS
    SELECT organization_id, 'credits:' || organization_id AS account, seq,
           format('allocated %s of %s used', coalesce(sum(allocated), 0), coalesce(sum(used), 0)) AS detail
      FROM (SELECT b.organization_id, a.seq, a.amount AS allocated, NULL::bigint AS used
              FROM account_proved AS b CROSS JOIN LATERAL (
                   SELECT seq, amount FROM credit_allocation
                    WHERE organization_id = b.owner AND seq > b.last_seq OFFSET 0) AS a
             WHERE b.kind = 'credits' AND NOT EXISTS (SELECT FROM archived_run AS r WHERE r.account = b.account
                      AND r.last_seq >= a.seq AND r.first_seq <= a.seq)
            UNION ALL
            SELECT b.organization_id, m.seq, NULL, m.taken
              FROM account_behind AS b JOIN organization AS o ON o.id = b.owner CROSS JOIN LATERAL (
                   SELECT seq, credits_used AS taken FROM credit_transaction
                    WHERE organization_id = b.owner AND seq > b.last_seq AND "timestamp" >= b.since
                      AND seq <= o.allocated_seq AND credits_used > 0
                   UNION ALL
                   SELECT seq, -amount FROM credit_posting
                    WHERE organization_id = b.owner AND seq > b.last_seq AND created_at >= b.since
                      AND seq <= o.allocated_seq AND amount < 0 AND kind <> 'correction' OFFSET 0) AS m
             WHERE b.kind = 'credits') AS sides
     GROUP BY organization_id, seq HAVING sum(allocated) IS DISTINCT FROM sum(used)
    UNION ALL
    SELECT b.organization_id, r.account, r.last_seq,
           format('since %s: allocated %s of %s used', r.first_seq, coalesce(a.amount, 0), r.taken)
      FROM archived_run AS r JOIN account_proved AS b ON b.account = r.account AND r.last_seq > b.last_seq
      LEFT JOIN LATERAL (SELECT sum(c.amount) AS amount FROM credit_allocation AS c
                          WHERE c.organization_id = b.owner AND c.seq BETWEEN r.first_seq AND r.last_seq) AS a ON true
     WHERE b.kind = 'credits' AND r.taken <> coalesce(a.amount, 0)
    UNION ALL
    -- additions that gave anything behind
    SELECT b.organization_id, b.account, NULL,
           format('addition %s of %s gave %s, noted %s', c.id, c.credits_added, a.amount, c.spent)
      FROM account_proved AS b CROSS JOIN LATERAL (
           SELECT DISTINCT credit_addition_id AS id FROM credit_allocation
            WHERE organization_id = b.owner AND seq > b.last_seq OFFSET 0) AS g
      JOIN credit_addition AS c ON c.id = g.id
     CROSS JOIN LATERAL (SELECT coalesce(sum(amount), 0) AS amount FROM credit_allocation WHERE credit_addition_id = c.id) AS a
     WHERE b.kind = 'credits' AND (a.amount <> c.spent OR c.spent > greatest(c.credits_added, 0));

-- The journal is of calls, not of accounts: it is compared since the month that is open.
CREATE VIEW journal_behind AS
    SELECT coalesce(max(since), '-infinity') AS since FROM account_proof;

-- Of weeks and half weeks those that begin in it.
CREATE VIEW behind_usage_adds_up AS
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
             WHERE created_at >= (SELECT since FROM journal_behind)
             GROUP BY 1, 2, 3) AS c
      FULL JOIN (SELECT span, start, organization_id, sum(requests) AS requests, sum(refused) AS refused,
                        sum(tokens) AS tokens, sum(credits) AS credits, sum(units) AS units, sum(cost) AS cost,
                        max(abs(tokens)) AS most_tokens, max(abs(credits)) AS most_credits, max(abs(units)) AS most_units,
                        max(abs(cost)) AS most_cost
                   FROM usage_rollup WHERE start >= (SELECT since FROM journal_behind) GROUP BY 1, 2, 3) AS r USING (span, start, organization_id)
     WHERE start >= (SELECT since FROM journal_behind)
       AND start >= coalesce((SELECT max(since) FROM kept_since WHERE ledger IN ('call', 'usage_rollup_' || span)), '-infinity')
       AND ((coalesce(c.requests, 0), CASE WHEN most_tokens = 9223372036854775807 THEN r.tokens ELSE coalesce(c.tokens, 0) END,
             CASE WHEN most_credits = 9223372036854775807 THEN r.credits ELSE coalesce(c.credits, 0) END,
             CASE WHEN most_units = 9223372036854775807 THEN r.units ELSE coalesce(c.units, 0) END,
             CASE WHEN most_cost = 9223372036854775807 THEN r.cost ELSE coalesce(c.cost, 0) END)
            IS DISTINCT FROM (r.requests, r.tokens, r.credits, r.units, r.cost)
            OR coalesce(c.refused, 0) > r.refused);

-- The whole of them believes no proof: the row at which it was written says the same, and so do the checkpoints.
CREATE OR REPLACE VIEW invariant_checkpoints AS
    WITH moved AS (
        SELECT c.account, c.last_seq, c.month, m.seq, m.at, m.delta, m.movements,
               max(m.seq) FILTER (WHERE m.balance IS NULL) OVER (PARTITION BY c.account, c.last_seq) AS unlimited_seq
          FROM checkpoint_in_force AS c
          JOIN account_movement AS m ON m.account = c.account AND m.seq > c.first_seq AND m.seq <= c.last_seq
    ), counted AS (
        SELECT account, last_seq, sum(movements)::bigint AS movements,
               sum(delta) FILTER (WHERE CASE WHEN account LIKE 'spend:%' THEN at >= month::timestamp AT TIME ZONE 'UTC'
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
     WHERE first_seq <> before
    UNION ALL
    SELECT p.account, p.last_seq, format('was proven at %s of epoch %s, its movement says %s of %s', p.balance, p.epoch,
           m.balance, m.epoch)
      FROM proof_in_force AS p LEFT JOIN account_movement AS m ON m.account = p.account AND m.seq = p.last_seq
     WHERE p.last_seq > 0 AND (m.seq, m.balance, m.epoch) IS DISTINCT FROM (p.last_seq, p.balance, p.epoch)
    UNION
    SELECT account, seq, detail FROM behind_checkpoints;

CREATE OR REPLACE VIEW invariant_chain AS
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

CREATE OR REPLACE VIEW invariant_quota AS
    WITH last AS (
        SELECT DISTINCT ON (tenant_id) tenant_id, seq, total_remaining, epoch, cycle
          FROM token_ledger ORDER BY tenant_id, seq DESC
    ), used AS (
        SELECT tenant_id, cycle, sum(amount) AS amount
          FROM (SELECT tenant_id, cycle, amount FROM token_ledger WHERE transaction_type = 'consume'
                UNION ALL
                -- those of tenants are all uses
                SELECT split_part(account, ':', 2)::bigint, cycle, -amount FROM archived_run
                 WHERE account LIKE 'tenant:%') AS uses
         GROUP BY tenant_id, cycle
    )
    SELECT 'tenant:' || q.tenant_id AS account, q.last_seq AS seq,
           format('used %s of %s, remaining %s of %s, seq %s of %s', q.tokens_used, coalesce(u.amount, 0),
                  q.tokens_remaining, l.total_remaining, q.last_seq, l.seq) AS detail
      FROM tenant_quota AS q
      LEFT JOIN last AS l USING (tenant_id)
      LEFT JOIN used AS u ON u.tenant_id = q.tenant_id AND u.cycle = q.cycle
     WHERE NOT EXISTS (SELECT FROM listed_gap AS g WHERE g.account = 'tenant:' || q.tenant_id)
       AND (q.last_seq <> coalesce(l.seq, 0)
            OR (l.seq IS NOT NULL AND ((q.tokens_used <> coalesce(u.amount, 0)
                    AND NOT EXISTS (SELECT FROM known_drift AS d WHERE d.account = 'tenant:' || q.tenant_id))
                OR q.tokens_remaining IS DISTINCT FROM l.total_remaining
                OR q.epoch < l.epoch OR q.cycle <> l.cycle)));
