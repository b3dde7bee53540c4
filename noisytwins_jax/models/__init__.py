"""Generators and discriminators behind one interface."""
