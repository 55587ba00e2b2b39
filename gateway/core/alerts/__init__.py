"""What people are told without asking: which events there are, when, in which words and to whom."""
