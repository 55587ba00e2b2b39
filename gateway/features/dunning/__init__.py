"""Dunning: customers with unpaid invoices are reminded, and in the end their calls are refused."""
