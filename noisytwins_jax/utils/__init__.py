"""What every other folder may use, and nothing of this project is used in."""
