"""The API families: the fields that calls have, their prompts, their stored objects, and their refusals."""
