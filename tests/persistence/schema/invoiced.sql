-- April was invoiced: a subscription in two cycles, tokens, credits, units, and a note over the credits. The
-- sixteen days before it, credits of March, and what came later were not.
INSERT INTO organization (id, name, currency, spend_last_seq) VALUES (1, 'Acme', 'USD', 2);
INSERT INTO token_plan (id, name, total_amount, overage_policy, overage_unit_price)
VALUES (1, 'Starter', 1000, 'bill', 0.001);
UPDATE token_plan_price SET since = '2026-01-01Z';
INSERT INTO tenant (id, organization_id, name, plan_id) VALUES (1, 1, 'Main', 1);
INSERT INTO tenant_quota (tenant_id, plan_id, tokens_used, tokens_remaining, last_seq, epoch, cycle)
VALUES (1, 1, 4000, -3000, 3, 1, 1);
INSERT INTO control_write (id, account, verb, payload, state)
VALUES ('00000000-0000-4000-8000-000000000001', 'tenant:1', 'plan', '{"plan_id": 1}', 'done');
INSERT INTO token_ledger (tenant_id, transaction_type, amount, total_remaining, direction, created_at, epoch, seq,
                          cycle, control_write_id)
VALUES (1, 'reset', 1000, 1000, 'IN', '2026-04-01Z', 1, 1, 1, '00000000-0000-4000-8000-000000000001'),
       (1, 'consume', 3000, -2000, 'OUT', '2026-04-05Z', 1, 2, 1, NULL),
       (1, 'consume', 1000, -3000, 'OUT', '2026-05-05Z', 1, 3, 1, NULL);
INSERT INTO subscription_plan (id, name, monthly_cost, annual_cost, feature_access)
VALUES (1, 'Starter', 30, 300, '[]');
INSERT INTO organization_subscription (organization_id, plan_id, start_date, end_date, billing_interval, status)
VALUES (1, 1, '2026-03-16', '2026-05-21', 'monthly', 'over');
INSERT INTO subscription_segment (id, organization_id, plan_id, billing_interval, cost, anchor_date, start_date, end_date)
VALUES (1, 1, 1, 'monthly', 30, '2026-03-16', '2026-03-16', '2026-05-21');
INSERT INTO credit_addition (id, organization_id, credits_added, unit_cost, "timestamp", category)
VALUES (1, 1, 100, 0.1, '2026-04-02Z', 'paid'), (2, 1, 50, 0.1, '2026-03-02Z', 'paid');
INSERT INTO credit_posting (organization_id, kind, amount, balance_after, created_at, epoch, seq, credit_addition_id)
VALUES (1, 'addition', 50, 50, '2026-03-02Z', 1, 1, 2), (1, 'addition', 100, 150, '2026-04-02Z', 1, 2, 1);
UPDATE organization SET credit_balance = 150, credit_last_seq = 2, credit_epoch = 1;
INSERT INTO feature_usage (organization_id, tenant_id, feature_id, "timestamp", usage_amount, spend, spent_after, epoch, seq)
VALUES (1, 1, 1, '2026-04-10Z', 1000, 1000000, 1000000, 1, 1), (1, 1, 1, '2026-05-10Z', 500, 500000, 500000, 1, 2);
INSERT INTO usage_daily (day, organization_id, tenant_id, service_id, tokens, usage_amount, billed_usage_amount)
VALUES ('2026-04-10', 1, 1, 1, 0, 1000, 1000), ('2026-05-10', 1, 1, 1, 0, 500, 0),
       ('2026-04-05', 1, 1, 0, 3000, 0, 0), ('2026-05-05', 1, 1, 0, 1000, 0, 0);
INSERT INTO usage_tier (tenant_id, day, service_id, unit_price, organization_id, first_unit, quantity, billed_quantity)
VALUES (1, '2026-04-10', 1, 0.001, 1, 0, 1000, 1000), (1, '2026-05-10', 1, 0.001, 1, 0, 500, 0);
INSERT INTO invoice (id, organization_id, kind, status, currency, period_start, period_end, total_amount, covers)
VALUES (1, 1, 'invoice', 'draft', 'USD', '2026-04-01', '2026-05-01', 43.00,
        '{"since": "2026-04-01", "tenants": {"1": 2}, "credits": 2, "spend": 1}');
INSERT INTO invoice_line (invoice_id, position, kind, description, quantity, unit_price, amount, service_id, tenant_id)
VALUES (1, 1, 'subscription', 'Starter', 15, 0.967741935484, 14.52, NULL, NULL),
       (1, 2, 'subscription', 'Starter', 15, 1, 15.00, NULL, NULL), (1, 3, 'overage', 'Tokens', 2000, 0.001, 2.00, NULL, 1),
       (1, 4, 'credits_purchased', 'Credits', 100, 0.1, 10.00, NULL, NULL), (1, 5, 'usage', 'u', 1000, 0.001, 1.48, 1, NULL);
UPDATE invoice_line SET amount = 1.00 WHERE position = 5;
UPDATE invoice SET total_amount = 42.52;
INSERT INTO invoice_basis (invoice_id, kind, quantity, segment_id, start_date, end_date, tenant_id, cycle,
                           credit_addition_id, service_id, day, unit_price)
VALUES (1, 'subscription', 15, 1, '2026-04-01', '2026-04-16', NULL, NULL, NULL, NULL, NULL, NULL),
       (1, 'subscription', 15, 1, '2026-04-16', '2026-05-01', NULL, NULL, NULL, NULL, NULL, NULL),
       (1, 'overage', 2000, NULL, NULL, NULL, 1, 1, NULL, NULL, NULL, NULL),
       (1, 'credits_purchased', 100, NULL, NULL, NULL, NULL, NULL, 1, NULL, NULL, NULL),
       (1, 'usage', 1000, NULL, NULL, NULL, 1, NULL, NULL, 1, '2026-04-10', 0.001);
UPDATE invoice SET status = 'finalized', number = '2026-000001', finalized_at = '2026-05-01Z';
INSERT INTO invoice (id, organization_id, kind, corrects_id, status, currency, period_start, period_end, total_amount)
VALUES (2, 1, 'credit_note', 1, 'draft', 'USD', '2026-04-01', '2026-05-01', -10);
INSERT INTO invoice_line (invoice_id, position, kind, description, quantity, unit_price, amount, corrects_position)
VALUES (2, 1, 'credits_purchased', 'Credits', -100, 0.1, -10, 4);
UPDATE invoice SET status = 'finalized', number = '2026-000002', finalized_at = '2026-05-02Z' WHERE id = 2;
INSERT INTO invoice_sequence VALUES ('2026', 2);
SELECT setval(pg_get_serial_sequence('invoice', 'id'), 2);
