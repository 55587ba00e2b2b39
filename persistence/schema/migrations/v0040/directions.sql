-- An amendment takes back of what a call was charged (IN), or charges it more (OUT).
ALTER TABLE amendment ADD COLUMN direction TEXT DEFAULT 'IN' NOT NULL
    CONSTRAINT amendment_direction_check CHECK (direction IN ('IN', 'OUT'));

-- Tokens that a tenant was beyond its plan at the end of each span: from a reset or a change of plan to the next one.
-- `next_seq` is null of the span that runs. The price is the first one there was for them in their cycle and plan.
-- Spans that ended with nothing owed are left out, unless something was charged while they ran, or was told later. What was
-- told, charged or taken back after its cycle had ended counts in that one, from when it was used on.
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
     CROSS JOIN LATERAL (SELECT coalesce(sum(u.late_tokens), 0)::bigint AS tokens FROM (
              SELECT tenant_id, used_at, late_tokens FROM use_event
              UNION ALL SELECT tenant_id, used_at, late_tokens FROM amendment WHERE direction = 'OUT') AS u
              WHERE u.tenant_id = s.tenant_id AND u.late_tokens > 0 AND u.used_at >= coalesce(began.at, s.created_at)
                AND u.used_at < coalesce(s.next_at, 'infinity')) AS late
     CROSS JOIN LATERAL (SELECT coalesce(sum(m.late_tokens), 0)::bigint AS tokens FROM amendment AS m
              WHERE m.tenant_id = s.tenant_id AND m.direction = 'IN' AND m.late_tokens > 0
                AND m.used_at >= coalesce(began.at, s.created_at) AND m.used_at < coalesce(s.next_at, 'infinity')) AS back
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

-- What an amendment moved of a call's tokens stays as it was in its budgets, and so does what it cost before it was rated again.
CREATE OR REPLACE VIEW invariant_budgets AS
    SELECT 'budget:' || b.id AS account, NULL::bigint AS seq,
           format('since %s: %s used, calls come to %s', s.start, u.used, c.used) AS detail
      FROM budget AS b JOIN organization AS o ON o.id = b.organization_id
     CROSS JOIN LATERAL (SELECT min(start) AS start FROM budget_use WHERE budget_id = b.id AND start > greatest(
               b.updated_at + interval '1 minute', (SELECT since FROM kept_since WHERE ledger = 'call'))) AS s
     CROSS JOIN LATERAL (SELECT sum(used::numeric + reset) AS used, max(greatest(abs(used), abs(reset))) AS largest
               FROM budget_use WHERE budget_id = b.id AND start >= s.start) AS u
     CROSS JOIN LATERAL (SELECT coalesce(sum(amount) FILTER (WHERE route IS DISTINCT FROM 'events'), 0) AS used,
                                coalesce(sum(amount), 0) AS with_events
               FROM (SELECT *, CASE WHEN b.unit = 'tokens' THEN tokens + amended WHEN currency = o.currency THEN cost - rerated END AS amount
                       FROM call) AS call WHERE organization_id = o.id AND created_at >= s.start AND NOT refused
                AND (b.tenant_id IS NULL OR tenant_id = b.tenant_id) AND (b.api_key_id IS NULL OR api_key_id = b.api_key_id)
                AND (b.project_id IS NULL OR project_id = b.project_id)
                AND (b.service_id IS NULL OR service_id = b.service_id)) AS c
     WHERE b.unit IN ('money', 'tokens') AND b.mode = 'enforce' AND b."user" IS NULL AND b.model IS NULL
       AND b.deleted_at IS NULL AND u.used NOT BETWEEN c.used AND c.with_events AND u.largest < 9007199254740991;
