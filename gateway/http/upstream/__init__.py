"""The upstream's side: pools of connections."""
