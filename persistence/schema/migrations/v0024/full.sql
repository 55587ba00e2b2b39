-- A window of a budget counts as far as the counters do, whose numbers are exact up to 2^53 - 1; what was counted beyond
-- that before is "so much or more" too.
UPDATE budget_use SET used = greatest(-9007199254740991, least(used, 9007199254740991))
 WHERE used NOT BETWEEN -9007199254740991 AND 9007199254740991;

-- The same as before, but for the number from which a window says nothing more of its calls.
CREATE OR REPLACE VIEW invariant_budgets AS
    SELECT 'budget:' || b.id AS account, NULL::bigint AS seq,
           format('since %s: %s used, calls come to %s', s.start, u.used, c.used) AS detail
      FROM budget AS b JOIN organization AS o ON o.id = b.organization_id
     CROSS JOIN LATERAL (SELECT min(start) AS start FROM budget_use WHERE budget_id = b.id AND start > greatest(
               b.updated_at + interval '1 minute', (SELECT since FROM kept_since WHERE ledger = 'call'))) AS s
     CROSS JOIN LATERAL (SELECT sum(used::numeric + reset) AS used, max(greatest(abs(used), abs(reset))) AS largest
               FROM budget_use WHERE budget_id = b.id AND start >= s.start) AS u
     CROSS JOIN LATERAL (SELECT coalesce(sum(CASE WHEN b.unit = 'tokens' THEN tokens
                                               WHEN currency = o.currency THEN cost END), 0) AS used
               FROM call WHERE organization_id = o.id AND created_at >= s.start AND NOT refused
                AND (b.tenant_id IS NULL OR tenant_id = b.tenant_id) AND (b.api_key_id IS NULL OR api_key_id = b.api_key_id)
                AND (b.project_id IS NULL OR project_id = b.project_id)
                AND (b.service_id IS NULL OR service_id = b.service_id)) AS c
     WHERE b.unit IN ('money', 'tokens') AND b.mode = 'enforce' AND b."user" IS NULL AND b.model IS NULL
       AND b.deleted_at IS NULL AND u.used <> c.used AND u.largest < 9007199254740991;

-- The largest amount that was told as reached. What a budget is raised to is another amount: it is told as well.
ALTER TABLE budget_told ADD COLUMN level NUMERIC DEFAULT 0 NOT NULL;
UPDATE budget_told AS t SET level = greatest(t.part, CASE WHEN t.exceeded THEN 1 ELSE 0 END) * b.amount
                                  * CASE b.unit WHEN 'money' THEN 1000000000 ELSE 1 END
  FROM budget AS b WHERE b.id = t.budget_id;
