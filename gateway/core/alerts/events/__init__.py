"""Events that webhooks hear of: one module for each subject, with its rows in `EVENTS`."""
