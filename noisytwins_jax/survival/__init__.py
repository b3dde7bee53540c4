"""What keeps a long run going on machines that are taken away, slow down, disagree or run out of space."""
