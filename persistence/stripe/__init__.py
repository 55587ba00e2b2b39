"""What Stripe is to collect: written with the documents, done by a keeper; and its outcomes."""
