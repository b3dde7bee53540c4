"""The progress bar of long work on images."""

import sys

import jax
from tqdm import tqdm


def images_bar(what: str, total: int) -> tqdm:
    """A bar over images on the first process; where output is not a terminal, a line every half minute."""
    often = {"mininterval": 0.1, "dynamic_ncols": True} if sys.stderr.isatty() else {"mininterval": 30.0}
    return tqdm(total=total, desc=what, unit="img", delay=2, disable=jax.process_index() > 0, **often)
