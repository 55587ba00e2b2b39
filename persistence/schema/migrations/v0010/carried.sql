-- What a use costs beyond whole credits is carried in its organization's account. In nano-credits: by how much a row's
-- credits are more than it cost, less what was given back of that; and what an account has paid ahead by now.
ALTER TABLE credit_transaction ADD COLUMN carried BIGINT DEFAULT 0 NOT NULL
    CONSTRAINT credit_transaction_carried_check CHECK ("carried" BETWEEN -9007199254740991 AND 9007199254740991);
ALTER TABLE organization ADD COLUMN credit_ahead BIGINT DEFAULT 0 NOT NULL
    CONSTRAINT organization_credit_ahead_check CHECK ("credit_ahead" BETWEEN 0 AND 9007199254740991);

-- What is paid ahead is what its uses carried. Of an account with a gap or a drift on file nobody can say so.
CREATE VIEW invariant_carried AS
    SELECT 'credits:' || o.id AS account, o.credit_last_seq AS seq,
           format('%s nano-credits ahead, uses carried %s', o.credit_ahead, coalesce(u.amount, 0)) AS detail
      FROM organization AS o
      LEFT JOIN (SELECT organization_id, sum(carried) AS amount FROM credit_transaction GROUP BY 1) AS u ON u.organization_id = o.id
     WHERE NOT EXISTS (SELECT FROM listed_gap AS g WHERE g.account = 'credits:' || o.id)
       AND NOT EXISTS (SELECT FROM known_drift AS d WHERE d.account = 'credits:' || o.id)
       AND o.credit_ahead <> coalesce(u.amount, 0);
