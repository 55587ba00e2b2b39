"""Stripe: it collects the money of final documents."""
