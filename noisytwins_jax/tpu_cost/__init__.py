"""What the programs of a run cost on TPUs that need not exist."""
