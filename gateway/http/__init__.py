"""The data plane's door: sockets of clients and upstreams."""
