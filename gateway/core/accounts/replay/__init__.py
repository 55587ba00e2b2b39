"""What budgets would have done with calls of the past: admission by their windows, without Redis. Pure."""
