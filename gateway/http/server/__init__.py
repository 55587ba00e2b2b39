"""The client's side: the listening server and its connections."""
