"""From the head of a request to its route, credential, and the lines for the upstream."""
