"""Data: long-tail statistics, image sources, data sets by name, the training pipeline, and data preparation."""
