"""Preparation of data sets: ``python -m noisytwins_jax.data.prepare <dataset> --source=… --data_dir=… --resolution=…``."""
