"""What the person on call runs: backup, restore, and a check of everything."""
