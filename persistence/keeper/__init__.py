"""What the keeper's loops read and write beside the ledger."""
