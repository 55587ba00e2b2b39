"""What a signed token of an issuer says, and whom it stands for here."""
