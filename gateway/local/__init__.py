"""A whole installation on one machine: embedded servers, processes, demo data."""
