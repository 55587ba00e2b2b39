"""Dunning: who does not pay is reminded, and their calls are refused in the end."""
