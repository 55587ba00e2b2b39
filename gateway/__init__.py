"""Tollkeeper: a rate, quota and billing gateway for LLM and HTTP APIs."""
