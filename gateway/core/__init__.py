"""The pure core: every noun and all arithmetic. No I/O, no await, no clock."""
