"""What a billing service is to be told: written with the calls, sent by a keeper, looked after by people."""
