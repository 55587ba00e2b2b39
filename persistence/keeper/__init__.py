"""What the keeper's loops read and write in addition to the ledger."""
