"""The console: pages for people over the very operations the Admin API answers with."""
