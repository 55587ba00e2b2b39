"""The Redis door: keys, scripts, the pipelined wire, the outbox."""
