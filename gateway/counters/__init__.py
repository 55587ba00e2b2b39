"""The only package that talks to Redis: keys, scripts, pipelined connections, the outbox."""
