-- What a credit costs that is used beyond the balance, and since when; null costs nothing.
ALTER TABLE organization ADD COLUMN credit_unit_cost NUMERIC(28, 10)
    CONSTRAINT organization_credit_unit_cost_check CHECK (credit_unit_cost > 0);
CREATE TABLE credit_price (
    organization_id BIGINT NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    unit_cost NUMERIC(28, 10),
    CONSTRAINT credit_price_pkey PRIMARY KEY (organization_id, since),
    CONSTRAINT credit_price_organization_id_fkey FOREIGN KEY(organization_id) REFERENCES organization (id)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON credit_price FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON credit_price EXECUTE FUNCTION refuse_change();

-- Of debt (what no addition pays): the day it was used on, and what a credit of it costs; null of what is free.
ALTER TABLE credit_allocation ADD COLUMN day DATE, ADD COLUMN unit_cost NUMERIC(28, 10);
-- Debt that costs something, by day and price.
CREATE TABLE credit_debt (
    organization_id BIGINT NOT NULL,
    day DATE NOT NULL,
    unit_cost NUMERIC(28, 10) NOT NULL,
    -- What no addition has covered, billed or not; and what is owed for: billed, or not covered before it was.
    open_quantity BIGINT DEFAULT 0 NOT NULL,
    quantity BIGINT DEFAULT 0 NOT NULL,
    -- How much of it there are charges of, how many times some were made, and how much of those invoices have.
    charged_quantity BIGINT DEFAULT 0 NOT NULL,
    charges BIGINT DEFAULT 0 NOT NULL,
    billed_quantity BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT credit_debt_pkey PRIMARY KEY (organization_id, day, unit_cost),
    CONSTRAINT credit_debt_quantity_check CHECK (open_quantity >= 0 AND quantity BETWEEN billed_quantity AND billed_quantity + open_quantity),
    CONSTRAINT credit_debt_organization_id_fkey FOREIGN KEY(organization_id) REFERENCES organization (id)
);
CREATE INDEX credit_debt_to_charge_idx ON credit_debt (organization_id) WHERE quantity <> charged_quantity;

ALTER TABLE charge
    DROP CONSTRAINT charge_kind_check,
    ADD CONSTRAINT charge_kind_check CHECK (kind IN ('subscription', 'discount', 'overage', 'credits_purchased',
        'credits_postpaid', 'usage', 'minimum_commitment')),
    DROP CONSTRAINT charge_source_check,
    ADD CONSTRAINT charge_source_check CHECK (source IN ('subscription_segment', 'organization_subscription', 'token_ledger',
        'credit_addition', 'credit_debt', 'usage_tier', 'invoice_line'));
ALTER TABLE invoice_line
    DROP CONSTRAINT invoice_line_kind_check,
    ADD CONSTRAINT invoice_line_kind_check CHECK (kind IN ('subscription', 'discount', 'overage', 'credits_purchased',
        'credits_postpaid', 'credits_consumed', 'usage', 'minimum_commitment', 'tax'));
-- What an invoice billed of debt is given with its payment, once.
ALTER TABLE credit_addition
    DROP CONSTRAINT credit_addition_invoicing_check,
    ADD CONSTRAINT credit_addition_invoicing_check CHECK (invoicing IN ('next', 'now', 'prepaid', 'postpaid')),
    DROP CONSTRAINT credit_addition_own_invoice_check,
    ADD CONSTRAINT credit_addition_own_invoice_check CHECK (invoicing = 'next'
        OR category = 'paid' AND credits_added > 0 AND CASE invoicing WHEN 'postpaid' THEN unit_cost IS NULL AND invoice_id IS NOT NULL
                                                       ELSE coalesce(unit_cost, 0) > 0 END);
CREATE UNIQUE INDEX credit_addition_postpaid_key ON credit_addition (invoice_id) WHERE invoicing = 'postpaid';

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
     WHERE a.invoicing = 'postpaid' AND a.credits_added > coalesce(c.quantity, 0);
