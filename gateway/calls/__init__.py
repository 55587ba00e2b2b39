"""The cost and the records of a use, whether it is a call, a job, a hold or an event."""
