"""What holds for every request of the admin port: who asks, what is sent, how it is refused."""
