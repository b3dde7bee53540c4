"""Metrics of feature arrays, and the networks that extract features."""
