"""Jobs that an upstream runs later, such as batches, videos and background responses."""
