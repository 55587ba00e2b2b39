"""All data of one user, read or taken out by a command. Part of the composition root."""
