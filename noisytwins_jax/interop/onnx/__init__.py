"""Trained generators as ONNX files, for programs without JAX."""
