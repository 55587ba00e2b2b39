-- Roll-ups of further spans, so that a report reads few rows whatever it asks for. Halves of weeks, the first to the end
-- of Wednesday: at either end of its time a report reads three days less.
CREATE TABLE usage_rollup_half_week PARTITION OF usage_rollup FOR VALUES IN ('half_week');
INSERT INTO usage_rollup (span, organization_id, start, tenant_id, api_key_id, user_id, project_id, service_id, model,
       currency, requests, refused, input, cache_read, cache_write, output, reasoning, tokens, credits, units, cost,
       estimated, unpriced)
SELECT 'half_week', organization_id,
       greatest(date_trunc('week', start, 'UTC'), date_trunc('week', start - interval '72 hours', 'UTC') + interval '72 hours'),
       tenant_id, api_key_id, user_id, project_id, service_id, model, currency,
       least(greatest(sum(requests), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(refused), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(input), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(cache_read), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(cache_write), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(output), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(reasoning), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(tokens), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(credits), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(units), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(cost), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(estimated), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(unpriced), -9223372036854775807), 9223372036854775807)
  FROM usage_rollup WHERE span = 'day' GROUP BY 2, 3, 4, 5, 6, 7, 8, 9, 10 ORDER BY 2, 3, 4, 5, 6, 7, 8, 9, 10;

-- A day's keys, and an hour's models, so that what is asked of these by interval reads few rows too.
CREATE TABLE usage_rollup_key_day PARTITION OF usage_rollup FOR VALUES IN ('key_day');
CREATE TABLE usage_rollup_model_hour PARTITION OF usage_rollup FOR VALUES IN ('model_hour');
INSERT INTO usage_rollup (span, organization_id, start, tenant_id, api_key_id, user_id, project_id, service_id, model,
       currency, requests, refused, input, cache_read, cache_write, output, reasoning, tokens, credits, units, cost,
       estimated, unpriced)
SELECT 'key_day', organization_id, start, tenant_id, api_key_id, 0, -1, service_id, model, currency,
       least(greatest(sum(requests), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(refused), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(input), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(cache_read), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(cache_write), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(output), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(reasoning), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(tokens), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(credits), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(units), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(cost), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(estimated), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(unpriced), -9223372036854775807), 9223372036854775807)
  FROM usage_rollup WHERE span = 'day' GROUP BY 2, 3, 4, 5, 8, 9, 10 ORDER BY 2, 3, 4, 5, 8, 9, 10;
INSERT INTO usage_rollup (span, organization_id, start, tenant_id, api_key_id, user_id, project_id, service_id, model,
       currency, requests, refused, input, cache_read, cache_write, output, reasoning, tokens, credits, units, cost,
       estimated, unpriced)
SELECT 'model_hour', organization_id, start, 0, 0, 0, -1, service_id, model, currency,
       least(greatest(sum(requests), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(refused), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(input), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(cache_read), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(cache_write), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(output), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(reasoning), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(tokens), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(credits), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(units), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(cost), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(estimated), -9223372036854775807), 9223372036854775807),
       least(greatest(sum(unpriced), -9223372036854775807), 9223372036854775807)
  FROM usage_rollup WHERE span = 'team_hour' GROUP BY 2, 3, 8, 9, 10 ORDER BY 2, 3, 8, 9, 10;
-- Of hours that were dropped before this there is none by models either.
INSERT INTO kept_since SELECT 'usage_rollup_model_hour', since FROM kept_since WHERE ledger = 'usage_rollup_team_hour';

-- What had no price is in the organization's currency, as it would be with one: it is written there now, where a report
-- had to look it up for every row.
WITH unnamed AS (
    DELETE FROM usage_rollup AS r USING organization AS o WHERE r.currency = '' AND o.id = r.organization_id
    RETURNING r.*, o.currency AS own
)
INSERT INTO usage_rollup AS u (span, organization_id, start, tenant_id, api_key_id, user_id, project_id, service_id,
       model, currency, requests, refused, input, cache_read, cache_write, output, reasoning, tokens, credits, units,
       cost, estimated, unpriced)
SELECT span, organization_id, start, tenant_id, api_key_id, user_id, project_id, service_id, model, own, requests,
       refused, input, cache_read, cache_write, output, reasoning, tokens, credits, units, cost, estimated, unpriced
  FROM unnamed ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
    ON CONFLICT (span, organization_id, start, tenant_id, api_key_id, user_id, project_id, service_id, model, currency) DO UPDATE SET
       requests = least(greatest(u.requests::numeric + excluded.requests, -9223372036854775807), 9223372036854775807),
       refused = least(greatest(u.refused::numeric + excluded.refused, -9223372036854775807), 9223372036854775807),
       input = least(greatest(u.input::numeric + excluded.input, -9223372036854775807), 9223372036854775807),
       cache_read = least(greatest(u.cache_read::numeric + excluded.cache_read, -9223372036854775807), 9223372036854775807),
       cache_write = least(greatest(u.cache_write::numeric + excluded.cache_write, -9223372036854775807), 9223372036854775807),
       output = least(greatest(u.output::numeric + excluded.output, -9223372036854775807), 9223372036854775807),
       reasoning = least(greatest(u.reasoning::numeric + excluded.reasoning, -9223372036854775807), 9223372036854775807),
       tokens = least(greatest(u.tokens::numeric + excluded.tokens, -9223372036854775807), 9223372036854775807),
       credits = least(greatest(u.credits::numeric + excluded.credits, -9223372036854775807), 9223372036854775807),
       units = least(greatest(u.units::numeric + excluded.units, -9223372036854775807), 9223372036854775807),
       cost = least(greatest(u.cost::numeric + excluded.cost, -9223372036854775807), 9223372036854775807),
       estimated = least(greatest(u.estimated::numeric + excluded.estimated, -9223372036854775807), 9223372036854775807),
       unpriced = least(greatest(u.unpriced::numeric + excluded.unpriced, -9223372036854775807), 9223372036854775807);

-- Calls that a span of the roll-ups does not add up to, either way. Of refused ones there are as many rows as are told,
-- never more than are counted. Nothing is said of a time whose calls were dropped, or whose rows of this span were.
CREATE OR REPLACE VIEW invariant_usage_adds_up AS
    SELECT 'organization:' || organization_id AS account, NULL::bigint AS seq,
           format('%s of %s: %s calls and %s refused in the journal, %s and %s in its roll-up', span, start, c.requests,
                  c.refused, r.requests, r.refused) AS detail
      FROM (SELECT s.span, CASE WHEN s.unit = 'half_week'
                   THEN greatest(date_trunc('week', created_at, 'UTC'), date_trunc('week', created_at - interval '72 hours', 'UTC') + interval '72 hours')
                   ELSE date_trunc(s.unit, created_at, 'UTC') END AS start, organization_id,
                   count(*) FILTER (WHERE NOT refused) AS requests, count(*) FILTER (WHERE refused) AS refused,
                   sum(tokens) AS tokens, sum(credits) AS credits, sum(units) AS units, coalesce(sum(cost), 0) AS cost
              FROM call, (VALUES ('hour', 'hour'), ('day', 'day'), ('half_week', 'half_week'), ('week', 'week'),
                                 ('month', 'month'), ('team_hour', 'hour'), ('team_day', 'day'),
                                 ('key_day', 'day'), ('model_hour', 'hour')) AS s (span, unit)
             GROUP BY 1, 2, 3) AS c
      FULL JOIN (SELECT span, start, organization_id, sum(requests) AS requests, sum(refused) AS refused,
                        sum(tokens) AS tokens, sum(credits) AS credits, sum(units) AS units, sum(cost) AS cost,
                        max(abs(tokens)) AS most_tokens, max(abs(credits)) AS most_credits, max(abs(units)) AS most_units,
                        max(abs(cost)) AS most_cost
                   FROM usage_rollup GROUP BY 1, 2, 3) AS r USING (span, start, organization_id)
     WHERE start >= coalesce((SELECT max(since) FROM kept_since WHERE ledger IN ('call', 'usage_rollup_' || span)), '-infinity')
       AND ((coalesce(c.requests, 0), CASE WHEN most_tokens = 9223372036854775807 THEN r.tokens ELSE coalesce(c.tokens, 0) END,
             CASE WHEN most_credits = 9223372036854775807 THEN r.credits ELSE coalesce(c.credits, 0) END,
             CASE WHEN most_units = 9223372036854775807 THEN r.units ELSE coalesce(c.units, 0) END,
             CASE WHEN most_cost = 9223372036854775807 THEN r.cost ELSE coalesce(c.cost, 0) END)
            IS DISTINCT FROM (r.requests, r.tokens, r.credits, r.units, r.cost)
            OR coalesce(c.refused, 0) > r.refused);
