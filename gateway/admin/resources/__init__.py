"""The resources of the Admin API: their fields, filters and verbs; `registry` lists all of them."""
