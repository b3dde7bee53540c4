"""Data: preparing it, long-tail statistics, sources of images, data sets by name, and the training pipeline."""
