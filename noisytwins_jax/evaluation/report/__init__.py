"""Figures, image sheets and HTML pages of evaluations."""
