"""What the Admin API has: nouns with their fields, filters and verbs; `registry` has them all."""
