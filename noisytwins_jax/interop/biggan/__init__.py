"""Checkpoints of BigGAN and BigGAN-deep in other frameworks."""
