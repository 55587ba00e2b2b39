"""The console: web pages for people, over the same operations as the Admin API."""
