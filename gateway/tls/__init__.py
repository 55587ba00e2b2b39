"""TLS for the gateway's own ports: certificates from files, and sessions over sockets."""
