"""Everyday administration from a terminal, over the Admin API: tables for people, `--json` for programs."""
