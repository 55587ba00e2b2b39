"""Stripe: it collects the payments of final documents."""
