"""The ledger writer: stores settled uses as rows, once each."""
