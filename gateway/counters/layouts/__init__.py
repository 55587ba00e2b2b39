"""How states, holds and entries are packed."""
