"""State, updates, programs and the moving average."""
