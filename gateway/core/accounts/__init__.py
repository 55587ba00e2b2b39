"""What accounts hold and how they move: limits, holds, the ledger and its events."""
