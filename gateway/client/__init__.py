"""What other programs call the gateway by; it imports nothing else of it."""
