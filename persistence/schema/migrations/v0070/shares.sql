-- Keepers have the partitions among them: who is there, and who flushes what.

-- Keepers that say that they are there, by this server's clock, and the partitions whose counters each of them reaches.
CREATE TABLE keeper (
    id UUID PRIMARY KEY,
    -- Host and port of its Admin API: whoever begins there is the next one in its place.
    place TEXT NOT NULL,
    reached SMALLINT[] NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL
);

-- Who flushes a partition. It is whose it was until that one gives it away, or is there no more.
CREATE TABLE keeper_partition (
    partition SMALLINT PRIMARY KEY CHECK (partition BETWEEN 0 AND 63),
    keeper_id UUID NOT NULL
);
