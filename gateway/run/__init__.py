"""The processes of Tollkeeper: how a worker and a keeper start, serve, reload and stop."""
