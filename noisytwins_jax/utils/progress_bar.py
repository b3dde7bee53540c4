"""A progress bar over images."""

import sys

import jax
from tqdm import tqdm


def images_bar(description: str, total: int) -> tqdm:
    """Create a bar over images, on the primary process; without a terminal it prints a line every half minute."""
    options = {"mininterval": 0.1, "dynamic_ncols": True} if sys.stderr.isatty() else {"mininterval": 30.0}
    return tqdm(total=total, desc=description, unit="img", delay=2, disable=jax.process_index() > 0, **options)
