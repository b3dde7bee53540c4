"""Checkpoints of StyleGAN2 in PyTorch."""
