"""Documents: an invoice as PDF and as electronic invoice."""
