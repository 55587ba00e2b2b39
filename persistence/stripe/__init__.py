"""Documents for collection by Stripe: queued with each document, sent by a keeper; and the outcomes."""
