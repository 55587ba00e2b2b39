"""The engine of a use: what it costs and leaves behind, whether it is a call, a job, a hold or an event."""
