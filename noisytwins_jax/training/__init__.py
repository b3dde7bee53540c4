"""The training step, its state, checkpoints, and the hooks around it."""
