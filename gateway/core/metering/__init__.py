"""What an answer used: the meters count, by each API's own dialect."""
