"""Outgoing HTTP of all parts but the data plane, and `CONNECT` through proxies for both."""
