"""Reports in the shapes of vendors' own Admin APIs."""
