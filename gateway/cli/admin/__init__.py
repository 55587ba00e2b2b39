"""Administration from a terminal, through the Admin API: tables for people, `--json` for programs."""
