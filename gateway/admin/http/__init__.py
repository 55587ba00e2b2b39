"""The rules for every request of the admin port: authentication, bodies, refusals."""
