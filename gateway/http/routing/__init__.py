"""From a head to a plan: which route, whose call, what goes on to the upstream."""
