"""Documents made of an invoice for its customer."""
