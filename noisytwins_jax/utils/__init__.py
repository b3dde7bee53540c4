"""Utilities that every other folder may import."""
