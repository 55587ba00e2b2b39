"""The connections to Redis: addresses, sentinels, clusters, keys, and the library of scripts."""
