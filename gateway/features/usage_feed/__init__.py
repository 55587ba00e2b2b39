"""Usage feed: usage is reported to a billing service."""
