-- Of a use that is charged what its call cost, the units are billionths of the currency.
ALTER TABLE feature_usage ADD COLUMN in_money BOOLEAN DEFAULT false NOT NULL;
