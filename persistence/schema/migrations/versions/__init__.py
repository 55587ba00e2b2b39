"""One module a version, each with the SQL it runs in a folder of its name."""
