"""What the training loop does between steps: one concern a file."""
