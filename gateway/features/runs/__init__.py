"""Runs: budgets that callers open, which travel with their calls."""
