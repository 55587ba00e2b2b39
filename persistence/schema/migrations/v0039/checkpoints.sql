-- What the movements of an account come to behind `first_seq` and up to `last_seq`, added up once its month was over.
-- The bounds are places in the account, not times: what is stored later has a later seq, and is of the next one.
CREATE TABLE account_checkpoint (
    account TEXT NOT NULL,
    first_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    -- A movement that was missing and took its place since: added up again, and the highest version is in force.
    version BIGINT DEFAULT 1 NOT NULL,
    -- Of the first of them.
    month DATE NOT NULL,
    movements BIGINT NOT NULL,
    -- Of movements behind `since_seq`: the last that left a tenant unlimited, or the last before the month's spend.
    amount NUMERIC NOT NULL,
    since_seq BIGINT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT account_checkpoint_pkey PRIMARY KEY (account, last_seq, version),
    CONSTRAINT account_checkpoint_seqs_check CHECK (last_seq > first_seq AND movements BETWEEN 0 AND last_seq - first_seq)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON account_checkpoint FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON account_checkpoint EXECUTE FUNCTION refuse_change();

CREATE VIEW checkpoint_in_force AS
    SELECT c.* FROM account_checkpoint AS c
     WHERE NOT EXISTS (SELECT FROM account_checkpoint AS n
                        WHERE n.account = c.account AND n.last_seq = c.last_seq AND n.version > c.version);

-- Each is what its movements come to now, and begins where the one before it ends.
CREATE VIEW invariant_checkpoints AS
    WITH moved AS (
        SELECT c.account, c.last_seq, c.month, m.seq, m.at, m.delta,
               max(m.seq) FILTER (WHERE m.balance IS NULL) OVER (PARTITION BY c.account, c.last_seq) AS unlimited_seq
          FROM checkpoint_in_force AS c
          JOIN account_movement AS m ON m.account = c.account AND m.seq > c.first_seq AND m.seq <= c.last_seq
    ), counted AS (
        SELECT account, last_seq, count(*) AS movements,
               sum(delta) FILTER (WHERE CASE WHEN account LIKE 'spend:%' THEN at >= month::timestamp AT TIME ZONE 'UTC'
                                             ELSE unlimited_seq IS NULL OR seq > unlimited_seq END) AS amount
          FROM moved GROUP BY account, last_seq
    )
    SELECT account, last_seq AS seq, format('since %s: %s movements of %s, kept are %s of %s', c.first_seq,
           coalesce(n.movements, 0), coalesce(n.amount, 0), c.movements, c.amount) AS detail
      FROM checkpoint_in_force AS c LEFT JOIN counted AS n USING (account, last_seq)
     WHERE (c.movements, c.amount) <> (coalesce(n.movements, 0), coalesce(n.amount, 0))
    UNION ALL
    SELECT account, last_seq, format('begins behind %s, the one before ends at %s', first_seq, before)
      FROM (SELECT account, last_seq, first_seq,
                   coalesce(lag(last_seq) OVER (PARTITION BY account ORDER BY last_seq), 0) AS before
              FROM checkpoint_in_force) AS c
     WHERE first_seq <> before;
