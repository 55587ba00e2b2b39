-- Who may do what besides the owner, who changes the schema: `:writer` is a keeper's role, `:reader` only
-- reads. Other objects nobody gets. Each migrate grants what is missing, and revokes what a role has besides.
GRANT USAGE ON SCHEMA :schema TO :writer, :reader;
GRANT EXECUTE ON FUNCTION
    ensure_partitions(timestamp with time zone,integer), ensure_partitions(timestamp with time zone,integer,text),
    drop_months(text,timestamp with time zone), move_ids_past(bigint)
    TO :writer;

-- Ledgers, prices, the audit log and found losses are only added to.
GRANT INSERT ON
    token_ledger, credit_posting, credit_transaction, feature_usage, audit_log, lost_event,
    invoice_basis, reconciliation, exchange_rate, price, amendment, invoice_document, payment, tax_rate, credit_price,
    account_checkpoint, accounting_rate, dunning_step, ledger_head, ledger_segment, note_application
    TO :writer;
-- Only added to, and deleted once it is old.
GRANT INSERT, DELETE ON
    use_event, rerating, handover_event, told_sign_out, used_sign_in
    TO :writer;
GRANT INSERT, UPDATE ON
    admin_token, app_user, budget, call, caller_group, charge, checkout, clock_ahead, control_write, credit_addition,
    credit_debt, credit_drawdown, dead_letter, handover, invoice_sequence, known_drift, organization,
    organization_subscription, partition_state, plan_end, quarantine, redis_loss, service,
    service_activation, service_discount, subscription_plan_price, subscription_segment, subscription_term, tenant,
    tenant_quota, token_plan, token_plan_price, top_up_order, usage_daily, usage_feed, usage_rollup,
    usage_tier, usage_told, webhook, zone_clock
    TO :writer;
GRANT INSERT, UPDATE, DELETE ON
    agent_sign_in, api_key, applied_row, budget_override, budget_raise, budget_told, budget_use, business_model, console_session,
    credit_allocation, gateway_worker, idempotency_key, invoice, invoice_line, job, keeper, keeper_partition, mail_consent, model,
    organization_service, raise_request, recovered_event, refused_batch, rerating_bill, rerating_left, run, share, signed_in_user, subscription_plan, usage_name,
    usage_outbox, usage_tag, webhook_delivery
    TO :writer;

-- All of these are read; of default partitions those whose rows are looked for, lest nobody archives them.
GRANT SELECT ON
    account_checkpoint, accounting_rate, admin_token, alembic_version, amendment, api_key, app_user, applied_row,
    archive_identity, archived_month, archived_run, audit_log, audit_log_default, backup_run, budget,
    budget_override, budget_raise, budget_told, budget_use, business_model, call, call_default, caller_group, charge, checkout, clock_ahead, control_write,
    credit_addition, credit_allocation, credit_debt, credit_drawdown, credit_posting, credit_price,
    credit_transaction, credit_transaction_default, dead_letter, dunning_step, exchange_rate, feature_usage,
    feature_usage_default, gateway_worker, handover, handover_event, invoice, invoice_basis,
    invoice_document, invoice_line, invoice_sequence, job, keeper, keeper_partition, kept_since, known_drift,
    ledger_head, ledger_segment,
    lost_event, model, note_application, organization, organization_service, organization_subscription,
    partition_state, payment, plan_end, price, quarantine, raise_request, reconciliation, recovered_event, redis_loss,
    refused_batch, rerating, rerating_bill, rerating_left, run, service, service_activation, service_discount, share, signed_in_user, subscription_plan,
    subscription_plan_price, subscription_segment, subscription_term, tax_rate, tenant, tenant_quota,
    token_ledger, token_ledger_default, token_plan, token_plan_price, told_sign_out, top_up_order,
    usage_daily, usage_feed, usage_name, usage_outbox, usage_rollup, usage_tag, usage_tier, usage_told, use_event,
    used_sign_in, webhook_delivery, zone_clock
    TO :writer, :reader;
GRANT SELECT ON
    listed_gap, account_movement, overage_span, told_use, checkpoint_in_force, invariant_chain,
    invariant_gapless, invariant_checkpoints, invariant_quota, invariant_blocked, invariant_credits,
    invariant_carried, invariant_request_once, invariant_rollup, invariant_allocations, invariant_drawn,
    invariant_invoice, invariant_payments, invariant_owed, invariant_days, invariant_service_discounts, invariant_usage_adds_up,
    invariant_budgets
    TO :writer, :reader;
-- Secrets that stand there as they were given out: sessions, first answers, links, the secrets webhooks are
-- signed with, seeds of agents' tokens.
GRANT SELECT ON agent_sign_in, console_session, idempotency_key, mail_consent, webhook TO :writer;
