"""Everything on one machine: embedded servers, supervisor, demo data."""
