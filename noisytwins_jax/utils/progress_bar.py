"""Progress bars."""

import sys
from typing import Any

import jax
from tqdm import tqdm


def images_bar(description: str, total: int, unit: str = "img") -> tqdm:
    """Create a bar over images (or other units), on the primary process; without a terminal it prints a line every half minute."""
    return tqdm(total=total, desc=description, unit=unit, delay=2, disable=jax.process_index() > 0, **_options())


def bytes_bar(description: str, total: int | None) -> tqdm:
    """Create a bar over the bytes of a file, on every process; without a terminal it prints a line every half minute."""
    return tqdm(total=total, desc=description, unit="B", unit_scale=True, unit_divisor=1024, delay=1, **_options())


def _options() -> dict[str, Any]:
    return {"mininterval": 0.1, "dynamic_ncols": True} if sys.stderr.isatty() else {"mininterval": 30.0}
