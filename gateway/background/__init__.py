"""Background work of a keeper, started by the clock instead of a request."""
