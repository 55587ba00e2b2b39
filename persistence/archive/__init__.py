"""Months on their way to an archive: which are closed, what is in them, what stands for them here."""
