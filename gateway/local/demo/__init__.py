"""The demo organization and its upstream."""
