"""Losses and regularisers, one idea a file, behind one interface."""
