"""Leases: the amounts that a gateway may admit by itself while Redis is away."""
