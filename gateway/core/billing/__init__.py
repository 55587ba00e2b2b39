"""Charges: prices, tiers, subscriptions, allocation and invoices."""
