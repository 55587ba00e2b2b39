"""The permit, cost and records of a use, whether it is a call, a job, a hold or an event."""
