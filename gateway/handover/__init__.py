"""Door to billing services: what is final here is collected there."""
