"""Losses and regularisers, one idea a file."""
