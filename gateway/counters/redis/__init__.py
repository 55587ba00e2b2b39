"""The connection to Redis: addresses, sentinels, the wire, and the library of scripts."""
