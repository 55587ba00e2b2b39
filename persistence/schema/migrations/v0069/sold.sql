-- A plan that ends owes by what its cycle was sold with, and what is taken back of an event is of the time it was used in.

-- When tokens that were told of before came into the ledger, where that was not when they were used.
ALTER TABLE amendment ADD COLUMN counted_at TIMESTAMP WITH TIME ZONE;

-- Tokens that were told of calls behind them, by when those were used; in the ledger they are of a type, and say a reason.
CREATE OR REPLACE VIEW told_use AS
    SELECT tenant_id, used_at, request_id, true AS is_more, late_tokens, quota_tokens, 'consume' AS as_type, NULL::text AS reason,
           NULL::timestamptz AS counted_at
      FROM use_event WHERE late_tokens > 0 OR quota_tokens > 0
    UNION ALL
    SELECT tenant_id, used_at, request_id, direction = 'OUT', late_tokens, quota_tokens, 'adjust', reason, counted_at
      FROM amendment WHERE late_tokens > 0 OR quota_tokens > 0;

-- Tokens that a tenant was beyond its plan at the end of each span: from a reset or a change of plan to the next one.
-- `next_seq` is null of the span that runs. The price is the first one there was for them in their cycle and plan.
-- Spans that ended with nothing owed are left out, unless something was charged while they ran, or was told later. What was
-- told, charged or taken back after its cycle had ended counts in that one, from when it was used on. So does what came into
-- the ledger behind a span of the cycle that runs: the span it was used in has it as if it had been told in time.
-- What is taken back of an event is of the span it was used in, and of those that counted it when it was told.
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
               WHERE u.tenant_id = s.tenant_id
                 AND (u.used_at >= coalesce(began.at, s.created_at) AND u.used_at < coalesce(s.next_at, 'infinity')
                      OR u.counted_at >= coalesce(began.at, s.created_at) AND u.counted_at < coalesce(s.next_at, 'infinity'))) AS told
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

-- What a plan said since when: of rows from before this was kept, what it says now.
ALTER TABLE token_plan_price
    ADD COLUMN total_amount BIGINT,
    ADD COLUMN reset_interval TEXT,
    ADD COLUMN time_zone TEXT,
    ADD COLUMN anchor_day BIGINT;
UPDATE token_plan_price AS v
   SET total_amount = p.total_amount, reset_interval = p.reset_interval, time_zone = p.time_zone, anchor_day = p.anchor_day
  FROM token_plan AS p WHERE p.id = v.plan_id;
CREATE OR REPLACE FUNCTION keep_plan_price() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO token_plan_price AS v
        (plan_id, since, overage_policy, unit_price, total_amount, reset_interval, time_zone, anchor_day)
    VALUES (NEW.id, now(), NEW.overage_policy, NEW.overage_unit_price, NEW.total_amount, NEW.reset_interval, NEW.time_zone,
            NEW.anchor_day)
    ON CONFLICT (plan_id, since) DO UPDATE
       SET overage_policy = excluded.overage_policy, unit_price = excluded.unit_price, total_amount = excluded.total_amount,
           reset_interval = excluded.reset_interval, time_zone = excluded.time_zone, anchor_day = excluded.anchor_day;
    RETURN NULL;
END $$;
DROP TRIGGER repriced ON token_plan;
CREATE TRIGGER repriced AFTER UPDATE ON token_plan FOR EACH ROW
    WHEN ((OLD.overage_policy, OLD.overage_unit_price, OLD.total_amount, OLD.reset_interval, OLD.time_zone, OLD.anchor_day)
          IS DISTINCT FROM
          (NEW.overage_policy, NEW.overage_unit_price, NEW.total_amount, NEW.reset_interval, NEW.time_zone, NEW.anchor_day))
    EXECUTE FUNCTION keep_plan_price();
