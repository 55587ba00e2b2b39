"""Archiving of months: which are closed, their contents, and the rows that replace them."""
