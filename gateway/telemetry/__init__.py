"""What is told of a process: logs, metrics and traces."""
