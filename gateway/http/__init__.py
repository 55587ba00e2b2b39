"""The HTTP side of a gateway worker: connections of clients and of upstreams."""
