"""A provider's own report of usage or cost, read and compared with ours. Pure: bytes in, rows out."""
