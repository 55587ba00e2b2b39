-- Of days whose rows are archived the roll-up stands for itself, ledger by ledger: one may be kept longer than another.
-- How many requests there were is known while all three have their rows.
CREATE OR REPLACE VIEW invariant_rollup AS
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
