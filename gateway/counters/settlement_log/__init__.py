"""The log of settlements on a gateway's disk, and how it is sent again."""
