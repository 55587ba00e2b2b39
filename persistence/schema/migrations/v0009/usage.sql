-- Roll-ups of calls, moved in the transaction that writes them. Each call is in the row of its hour and in that of its
-- day. What a call does not have is 0, -1 for a project, or an empty text: a key has no nulls. `cost` is in nano-units.
CREATE TABLE usage_rollup (
    span TEXT NOT NULL CONSTRAINT usage_rollup_span_check CHECK (span IN ('hour', 'day')),
    start TIMESTAMP WITH TIME ZONE NOT NULL,
    organization_id BIGINT NOT NULL,
    tenant_id BIGINT NOT NULL,
    api_key_id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    project_id BIGINT NOT NULL,
    service_id BIGINT NOT NULL,
    model TEXT NOT NULL,
    currency TEXT NOT NULL,
    requests BIGINT NOT NULL,
    refused BIGINT NOT NULL,
    input BIGINT NOT NULL,
    cache_read BIGINT NOT NULL,
    cache_write BIGINT NOT NULL,
    output BIGINT NOT NULL,
    reasoning BIGINT NOT NULL,
    tokens BIGINT NOT NULL,
    credits BIGINT NOT NULL,
    units BIGINT NOT NULL,
    cost BIGINT NOT NULL,
    estimated BIGINT NOT NULL,
    unpriced BIGINT NOT NULL,
    CONSTRAINT usage_rollup_pkey PRIMARY KEY
        (span, organization_id, start, tenant_id, api_key_id, user_id, project_id, service_id, model, currency)
);
INSERT INTO usage_rollup
SELECT span, date_trunc(span, created_at, 'UTC'), organization_id, tenant_id, api_key_id, coalesce(user_id, 0),
       coalesce(project_id, -1), coalesce(service_id, 0), coalesce(model, ''), coalesce(currency, ''), count(*), 0,
       sum(input), sum(cache_read), sum(cache_write + cache_write_1h), sum(output), sum(reasoning), sum(tokens),
       sum(credits), sum(units), least(coalesce(sum(cost), 0), 9223372036854775807), count(*) FILTER (WHERE estimated),
       count(*) FILTER (WHERE cost IS NULL AND tokens > 0)
  FROM call, (VALUES ('hour'), ('day')) AS spans (span) GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10;
CREATE INDEX usage_rollup_start_idx ON usage_rollup (span, start);

-- Calls of an hour that its roll-up does not add up to, either way.
CREATE VIEW invariant_usage_adds_up AS
    SELECT 'organization:' || organization_id AS account, NULL::bigint AS seq,
           format('%s of %s: %s calls in the journal, %s in its roll-up', span, start, c.requests, r.requests) AS detail
      FROM (SELECT 'hour' AS span, date_trunc('hour', created_at, 'UTC') AS start, organization_id, count(*) AS requests,
                   sum(tokens) AS tokens, sum(credits) AS credits, sum(units) AS units, coalesce(sum(cost), 0) AS cost
              FROM call GROUP BY 2, 3
             UNION ALL
            SELECT 'day', date_trunc('day', created_at, 'UTC'), organization_id, count(*),
                   sum(tokens), sum(credits), sum(units), coalesce(sum(cost), 0)
              FROM call GROUP BY 2, 3) AS c
      FULL JOIN (SELECT span, start, organization_id, sum(requests) AS requests, sum(tokens) AS tokens,
                        sum(credits) AS credits, sum(units) AS units, sum(cost) AS cost
                   FROM usage_rollup GROUP BY 1, 2, 3) AS r USING (span, start, organization_id)
     WHERE (c.requests, c.tokens, c.credits, c.units, c.cost) IS DISTINCT FROM
           (r.requests, r.tokens, r.credits, r.units, r.cost);
