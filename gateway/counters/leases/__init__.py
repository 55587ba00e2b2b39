"""What a gateway may admit alone while Redis is away."""
