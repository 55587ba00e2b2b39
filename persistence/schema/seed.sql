-- Rows that are always there.

-- Whom the tokens of the settings act as.
INSERT INTO app_user (external_id, name) VALUES ('built-in', 'Built-in staff');

INSERT INTO business_model (name, display_name, description, meter) VALUES
    ('Consumption', 'Consumption', 'Organization credits pay for each use.', 'consumption'),
    ('Subscription', 'Subscription',
     'The subscription plan includes the service; tokens count against the tenant''s plan.', 'subscription'),
    ('Pay-Per-Use', 'Pay per use', 'Each use is billed on the next invoice.', 'pay_per_use');

INSERT INTO service (name, description, key, credits, service_type, business_model_id, counts_tokens)
SELECT s.name, s.description, s.key, 0, 'Pay-As-You-Go', m.id, false
  FROM (VALUES
    ('Chat completions', 'OpenAI chat completions', 'chat'),
    ('Completions', 'OpenAI text completions', 'completions'),
    ('Responses', 'OpenAI responses', 'responses'),
    ('Embeddings', 'OpenAI embeddings', 'embeddings'),
    ('Messages', 'Anthropic messages', 'messages'),
    ('Gemini', 'Gemini content generation and embeddings', 'gemini')) AS s (name, description, key)
  JOIN business_model AS m ON m.name = 'Subscription';
