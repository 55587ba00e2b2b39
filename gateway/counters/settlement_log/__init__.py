"""The log of settlements on a gateway's disk, and sending its entries again."""
