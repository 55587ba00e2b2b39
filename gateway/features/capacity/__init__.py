"""Calls wait for the stated capacity of their upstream, which organizations share."""
