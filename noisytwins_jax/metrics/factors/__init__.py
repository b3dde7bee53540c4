"""True factors of drawn images, read off generated ones."""
