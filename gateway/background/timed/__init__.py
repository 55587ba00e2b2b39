"""Work that becomes due at a time: webhooks, invoices, control writes, reclaimed holds."""
