"""The way out for all but the data plane: one HTTP client; and `CONNECT` through proxies, for both."""
