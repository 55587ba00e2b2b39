"""WebSockets whose messages are calls, and sessions that are forwarded to their upstream."""
