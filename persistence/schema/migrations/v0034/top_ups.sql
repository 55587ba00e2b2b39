-- On which invoice credits are that were sold: the next one, or one of their own. Prepaid ones wait for its payment.
ALTER TABLE credit_addition
    ADD COLUMN invoicing TEXT DEFAULT 'next' NOT NULL
        CONSTRAINT credit_addition_invoicing_check CHECK (invoicing IN ('next', 'now', 'prepaid')),
    ADD COLUMN invoice_id BIGINT CONSTRAINT credit_addition_invoice_id_fkey REFERENCES invoice (id),
    ADD CONSTRAINT credit_addition_own_invoice_check
        CHECK (invoicing = 'next' OR category = 'paid' AND coalesce(unit_cost, 0) > 0 AND credits_added > 0);
CREATE INDEX credit_addition_to_bill_idx ON credit_addition (id) WHERE invoicing <> 'next' AND invoice_id IS NULL;
CREATE INDEX credit_addition_invoice_id_idx ON credit_addition (invoice_id) WHERE invoice_id IS NOT NULL;

-- What is owed, told from its sources, is what there are charges of, billed or not. Credit notes stand aside.
CREATE OR REPLACE VIEW invariant_owed AS
    WITH charged AS (
        SELECT organization_id, kind, source, source_id, tenant_id, coalesce(service_id, 0) AS service_id, period_start,
               unit_price, quantity, amount
          FROM charge WHERE reason NOT IN ('credited', 'credit_void')
    )
    -- units of a day at a price
    SELECT 'tenant:' || tenant_id AS account, NULL::bigint AS seq,
           format('day %s service %s at %s: %s units noted as charged, charges of %s units and %s', start, service_id, unit_price,
                  coalesce(t.charged_quantity, 0), coalesce(c.quantity, 0), coalesce(c.amount, 0)) AS detail
      FROM (SELECT tenant_id, service_id, unit_price, day::timestamp AT TIME ZONE 'UTC' AS start, charged_quantity
              FROM usage_tier WHERE charged_quantity <> 0) AS t
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
     WHERE next_seq IS NOT NULL AND (owed, owed * unit_price) <> (coalesce(c.quantity, 0), coalesce(c.amount, 0));
