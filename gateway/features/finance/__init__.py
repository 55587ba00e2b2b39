"""Finance: reports on the command line, and the charges of each day in the FOCUS format."""
