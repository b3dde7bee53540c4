"""A trained generator in hand: samples, interpolations, projection, export."""
