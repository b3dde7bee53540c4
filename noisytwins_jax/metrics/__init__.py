"""Evaluation metrics: numerics on feature arrays, a feature extractor, and the evaluation protocol that joins them."""
