"""What upstreams say of their own limits, and which of them are left alone meanwhile."""
