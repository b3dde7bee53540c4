"""Augmentation of everything that the discriminator sees."""
