"""One call, as it is read and before it is sent: what it asks, may hold, and where it goes."""
