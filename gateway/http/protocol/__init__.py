"""HTTP/1.1 without sockets: heads, framing, and the states of both sides."""
