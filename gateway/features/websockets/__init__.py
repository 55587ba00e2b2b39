"""WebSockets: messages that are calls, and sessions that pass to their upstream."""
