"""A client of the gateway for other programs. It imports nothing of the gateway."""
