"""What is made of an invoice for its customer."""
