"""Settlements that came after their hold had ended."""
