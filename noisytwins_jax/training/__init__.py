"""One training step, its state, checkpoints and what surrounds a run."""
