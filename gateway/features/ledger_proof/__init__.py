"""Ledger proof: rows of accounts are hashed into trees, whose heads a keeper signs every hour."""
