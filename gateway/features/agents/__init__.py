"""Agents: people sign programs in by the gateway protocol, without a key that they paste."""
