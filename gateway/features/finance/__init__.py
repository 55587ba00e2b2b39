"""Finance: reports on the command line, and the charges of each day as FOCUS has them."""
