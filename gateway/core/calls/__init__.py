"""One call before it is sent: what it asks for, what it may hold, and where it goes."""
