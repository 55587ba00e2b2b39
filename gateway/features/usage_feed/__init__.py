"""Usage feed: a billing service is told what is used."""
