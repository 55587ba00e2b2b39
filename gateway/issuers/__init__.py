"""The door to issuers of signed tokens: their keys, over HTTPS, and the library that verifies signatures."""
