"""What an evaluation measures, its protocol, and its report."""
