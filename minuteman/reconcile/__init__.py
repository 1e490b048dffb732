"""Desired state against actual state: what to believe, what to write, and the loop that does it."""
