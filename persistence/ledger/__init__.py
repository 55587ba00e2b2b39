"""Settled uses become rows, once each."""
