"""The convolutions of a discriminator in the order in which an image passes them, for FreezeD.

FreezeD (Mo, Cho and Shin, 2020) fine-tunes a discriminator whose first layers are fixed. Layers are counted as
StyleGAN2-ADA's option ``--freezed`` counts them: 1×1 convolutions of images and of shortcuts are layers, too.
"""

import re
from typing import Any

from flax.traverse_util import flatten_dict

Path = tuple[str, ...]
_BLOCK = re.compile(r"b(\d+)|blocks_(\d+)")  # named by resolution, which falls from block to block, or by number
_INPUTS, _SHORTCUTS = ("fromrgb", "input_conv"), ("skip", "conv_sc")


def convolutions_from_image(params: Any) -> list[Path]:
    """Return the paths of a discriminator's convolutions before its block of 4×4 pixels, those of attention left out.

    Args:
      params: arrays or their shapes, of any of this project's discriminators.
    """
    kernels = [path[:-1] for path, x in flatten_dict(params).items() if path[-1] == "weight" and len(x.shape) == 4]
    return sorted((path for path in kernels if "attention" not in path and path[0] != "b4"), key=_position)


def _position(path: Path) -> tuple:
    match = _BLOCK.fullmatch(path[0])
    if match is None:  # a convolution of the image outside the blocks
        return (-float("inf"),)
    block = -int(match[1]) if match[1] else int(match[2])
    return (block, path[-1] not in _INPUTS, path[-1] in _SHORTCUTS, path)
