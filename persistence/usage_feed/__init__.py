"""Usage events for a billing service: stored with the calls, sent by a keeper, managed by people."""
