"""Agents: people sign in programs by the gateway protocol, without pasting a key."""
