"""Runs that start from the networks of another run."""
