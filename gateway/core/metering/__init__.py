"""The usage of an answer: meters count it, each with the dialect of its API."""
