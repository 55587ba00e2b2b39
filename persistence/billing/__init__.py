"""Subscriptions, allocations of credits, and invoices."""
