"""`tollkeeper reconcile-provider`: a report of a provider beside our own."""
