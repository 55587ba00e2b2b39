"""The keeper's access to Redis: control writes, outboxes, definitions, status."""
