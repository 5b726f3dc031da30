"""Implements the protocols of `decode` over `models`, and the sessions users call."""
