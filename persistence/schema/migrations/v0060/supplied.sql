-- Units that are told of on another day than they were supplied on are charged, and so taxed, by the day of their supply.

-- Of the units of a day at a price in usage_tier, those that were supplied on an earlier day, and those that are taken back:
-- `is_back`, below zero, of what was told `told_on` a day. Of `charged_quantity` there are charges, written `charges` times.
CREATE TABLE usage_told (
    id BIGINT GENERATED ALWAYS AS IDENTITY CONSTRAINT usage_told_pkey PRIMARY KEY,
    tenant_id BIGINT NOT NULL,
    day DATE NOT NULL,
    service_id BIGINT NOT NULL,
    unit_price NUMERIC(28, 12) NOT NULL,
    supplied_on DATE NOT NULL,
    told_on DATE NOT NULL,
    is_back BOOLEAN NOT NULL,
    organization_id BIGINT NOT NULL,
    quantity BIGINT NOT NULL,
    charged_quantity BIGINT DEFAULT 0 NOT NULL,
    charges BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT usage_told_days_check CHECK (supplied_on <= told_on AND told_on <= day AND (is_back OR supplied_on < day AND told_on = day))
);
CREATE UNIQUE INDEX usage_told_key_idx
    ON usage_told (tenant_id, day, service_id, unit_price, supplied_on, told_on, is_back);
CREATE INDEX usage_told_organization_id_supplied_on_idx ON usage_told (organization_id, supplied_on);
CREATE INDEX usage_told_open_idx ON usage_told (organization_id) WHERE quantity <> charged_quantity;

ALTER TABLE charge
    DROP CONSTRAINT charge_source_check,
    ADD CONSTRAINT charge_source_check CHECK (source IN ('subscription_segment', 'organization_subscription', 'token_ledger',
        'credit_addition', 'credit_debt', 'usage_tier', 'usage_told', 'invoice_line'));

-- What is owed, told from its sources, is what there are charges of, billed or not. Credit notes stand aside.
CREATE OR REPLACE VIEW invariant_owed AS
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
    -- credits used beyond the balance, by day and price: what is noted, against charges and what is open
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
      FROM plan_end WHERE amount > 0 GROUP BY organization_id, anchor_date, paid_from
    HAVING sum(amount) > max(worth) + 0.000000001 * count(*);
