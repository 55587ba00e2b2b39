"""The door to TLS on our own ports: certificates from files, sessions over sockets."""
