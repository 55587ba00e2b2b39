"""All data of one user, exported or deleted by a command. Part of the composition root."""
