"""Tools for the person on call: storage of backups, and `tollkeeper doctor`."""
