-- Whose archive it is: two databases never write into one. Made with the first month.
CREATE TABLE archive_identity (
    id UUID DEFAULT gen_random_uuid() NOT NULL CONSTRAINT archive_identity_pkey PRIMARY KEY,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL
);
CREATE UNIQUE INDEX archive_identity_once_idx ON archive_identity ((true));

-- A month of a ledger that is read from its archive from then on: `rows` are in the file, `kept` of them here too.
CREATE TABLE archived_month (
    ledger TEXT NOT NULL,
    month DATE NOT NULL,
    url TEXT NOT NULL,
    file TEXT NOT NULL,
    rows BIGINT NOT NULL,
    kept BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    archived_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    dropped_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT archived_month_pkey PRIMARY KEY (ledger, month)
);

-- Movements of an account that are archived, one behind the other from `first_seq` to `last_seq`: together they are one
-- movement of `amount`, after which the account stands at `balance`. All of them are of one month, epoch, cycle and
-- checkpoint, and in an account that was limited throughout, or throughout not.
CREATE TABLE archived_run (
    account TEXT NOT NULL,
    first_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    month DATE NOT NULL,
    epoch BIGINT NOT NULL,
    cycle BIGINT,
    amount BIGINT NOT NULL,
    balance BIGINT,
    -- Of credits: nano-credits carried, and those of uses that cost any.
    carried BIGINT NOT NULL,
    taken BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT archived_run_pkey PRIMARY KEY (account, last_seq),
    CONSTRAINT archived_run_seqs_check CHECK (last_seq >= first_seq)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON archived_run FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON archived_run EXECUTE FUNCTION refuse_change();

CREATE OR REPLACE VIEW account_movement AS
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

CREATE OR REPLACE VIEW invariant_chain AS
    SELECT account, seq, format('%s then %s by %s', previous, balance, delta) AS detail
      FROM (SELECT *, lag(balance) OVER w AS previous, lag(seq) OVER w AS previous_seq,
                   date_trunc('month', at AT TIME ZONE 'UTC') AS month,
                   lag(date_trunc('month', at AT TIME ZONE 'UTC')) OVER w AS previous_month
              FROM account_movement WINDOW w AS (PARTITION BY account ORDER BY seq)) AS m
     WHERE (first_seq = 1 OR previous_seq = first_seq - 1)
       AND NOT (previous IS NULL AND balance IS NULL)
       -- spend starts again from zero each month; a drift on file changed the balance just before
       AND coalesce(balance, 0) <> delta + CASE
           WHEN account LIKE 'spend:%' AND previous_month < month THEN 0 ELSE coalesce(previous, 0) END
           + coalesce((SELECT sum(d.difference) FROM known_drift AS d
                        WHERE d.account = m.account AND d.seq BETWEEN m.first_seq - 1 AND m.seq - 1), 0);

CREATE OR REPLACE VIEW invariant_gapless AS
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
     WHERE first_seq <> before;

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
            OR (l.seq IS NOT NULL AND (q.tokens_used <> coalesce(u.amount, 0)
                OR q.tokens_remaining IS DISTINCT FROM l.total_remaining
                OR q.epoch < l.epoch OR q.cycle <> l.cycle)));

CREATE OR REPLACE VIEW invariant_credits AS
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

CREATE OR REPLACE VIEW invariant_carried AS
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

-- Every credit that left is allocated once, and no addition gives more than it has.
CREATE OR REPLACE VIEW invariant_allocations AS
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

-- Of days whose rows are archived the roll-up stands for itself.
CREATE OR REPLACE VIEW invariant_rollup AS
    WITH since AS (
        SELECT coalesce(max((since AT TIME ZONE 'UTC')::date), '-infinity') AS day FROM kept_since
         WHERE ledger IN ('token_ledger', 'credit_transaction', 'feature_usage')
    ), counted AS (
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
     WHERE day >= (SELECT since.day FROM since)
       AND (d.requests IS DISTINCT FROM c.requests
            OR d.tokens IS DISTINCT FROM CASE WHEN abs(d.tokens) = 9223372036854775807 THEN d.tokens ELSE c.tokens END
            OR d.credits IS DISTINCT FROM CASE WHEN abs(d.credits) = 9223372036854775807 THEN d.credits ELSE c.credits END
            OR d.usage_amount IS DISTINCT FROM CASE WHEN abs(d.usage_amount) = 9223372036854775807 THEN d.usage_amount ELSE c.units END)
    UNION ALL
    -- the units of a day are all of them priced
    SELECT 'tenant:' || tenant_id, NULL, format('day %s service %s: %s units, priced %s', day, service_id,
           d.usage_amount, coalesce(t.quantity, 0))
      FROM (SELECT * FROM usage_daily WHERE usage_amount <> 0) AS d
      FULL JOIN (SELECT tenant_id, day, service_id, sum(quantity) AS quantity, max(abs(quantity)) AS largest
                   FROM usage_tier GROUP BY 1, 2, 3 HAVING sum(quantity) <> 0) AS t USING (tenant_id, day, service_id)
     WHERE coalesce(d.usage_amount, 0) <> coalesce(t.quantity, 0)
       AND greatest(abs(d.usage_amount), t.largest) < 9223372036854775807;
