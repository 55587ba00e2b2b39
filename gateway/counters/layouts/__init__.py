"""The packed layouts of states, holds and entries in Redis."""
