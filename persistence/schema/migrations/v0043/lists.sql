-- Lists by user and by project, in their order, without the rows of others. What nobody named is in none of them.
CREATE INDEX call_user_id_idx ON call (user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX call_project_id_idx ON call (project_id, id) WHERE project_id IS NOT NULL;
CREATE INDEX token_ledger_user_id_idx ON token_ledger (user_id, tenant_id, seq) WHERE user_id IS NOT NULL;
CREATE INDEX token_ledger_project_id_idx ON token_ledger (project_id, tenant_id, seq) WHERE project_id IS NOT NULL;
CREATE INDEX credit_transaction_user_id_idx ON credit_transaction (user_id, organization_id, seq) WHERE user_id IS NOT NULL;
CREATE INDEX credit_transaction_project_id_idx ON credit_transaction (project_id, organization_id, seq) WHERE project_id IS NOT NULL;
CREATE INDEX feature_usage_user_id_idx ON feature_usage (user_id, organization_id, seq) WHERE user_id IS NOT NULL;
CREATE INDEX feature_usage_project_id_idx ON feature_usage (project_id, organization_id, seq) WHERE project_id IS NOT NULL;
