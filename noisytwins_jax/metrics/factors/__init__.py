"""Factors of variation of procedural images, predicted from generated ones."""
