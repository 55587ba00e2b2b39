-- What the units of a use cost each, as a text; a list of quantities and prices where it crossed a tier. Null of
-- a use that is charged what its call cost, and of rows from before.
ALTER TABLE feature_usage ADD COLUMN unit_prices JSONB;
