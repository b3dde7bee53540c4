"""Figures, image sheets and the page of an evaluation."""
