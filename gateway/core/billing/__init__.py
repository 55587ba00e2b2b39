"""What is charged: prices, tiers, subscriptions, allocation and invoices."""
