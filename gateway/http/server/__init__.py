"""The listening server and its connections to clients."""
