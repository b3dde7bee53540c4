"""Settings of a StyleGAN2 run that follow from the data: a starting point for pictures that nobody has trained on.

Each setting has its rule and where the rule is from: StyleGAN2-ADA (``--cfg=auto`` and ``--resume`` of its train.py), the
published configurations of NoisyTwins, or measurements of this project.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

ADA_HELPS_BELOW = 100_000  # images
_LONG_TAIL = 10.0  # images of the most frequent class over those of the rarest
_MANY_CLASSES = 50
_NV, _NT, _HERE = "StyleGAN2-ADA", "NoisyTwins", "measured here"
_ACTIVATIONS = 5000  # bytes of activations of a training image for each pixel, in bfloat16 with remat
_FIXED_MEMORY = 1.5e9  # bytes of networks, optimisers and programs


class Setting(NamedTuple):
    """One setting: the configuration's field, its value, the rule in words, and where the rule is from."""

    field: str
    value: Any
    rule: str
    source: str


def recommend(
    class_counts: Sequence[int] | np.ndarray, resolution: int, pretrained: bool = False, memory: float | None = None
) -> list[Setting]:
    """Return settings for a data set.

    Args:
      class_counts: training images of each class.
      resolution: pixels.
      pretrained: whether training starts from trained networks.
      memory: bytes of an accelerator, None where it is unknown: then the batch is not divided.
    """
    counts = np.asarray(class_counts)
    images, classes = int(counts.sum()), len(counts)
    batch = max(16, min(64, 4096 // resolution))
    settings = [
        Setting("batch_size", batch, f"4096 / {resolution} px, from 16 to 64", _NV),
        Setting("r1.gamma", round(0.0002 * resolution**2 / batch, 6), "0.0002 · pixels / batch", _NV),
        Setting("ema.kimg", batch * 10 / 32, "10/32 · batch", _NV),
        Setting("ema.rampup", None if pretrained else 0.05, "none from trained networks, else .05", _NV),
        _length(images, pretrained),
        *_augmentation(images, pretrained),
        *_twins(counts, classes),
    ]
    return settings + (_division(batch, resolution, memory) if memory else [])


def recipe_table(settings: Sequence[Setting]) -> str:
    """Return the settings as a table in text: field, value, rule, source."""
    rows = [("setting", "value", "rule", "source")]
    rows += [(f"config.{s.field}", "" if s.value == "" else str(s.value), s.rule, s.source) for s in settings]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _length(images: int, pretrained: bool) -> Setting:
    if pretrained:
        return Setting("total_kimg", 1000.0, "from trained networks", _NV)
    kimg = 25_000.0 if images >= 100_000 else 10_000.0 if images >= 10_000 else 5000.0
    return Setting(
        "total_kimg", kimg, f"{images:,} images; 25,000 from 100,000, 10,000 from 10,000, else 5000", "published runs"
    )


def _augmentation(images: int, pretrained: bool) -> list[Setting]:
    operations = "bgc" if images < ADA_HELPS_BELOW else ""
    speed = 100.0 if pretrained or images < 5000 else 500.0
    return [
        Setting("ada.operations", operations, f"ADA below {ADA_HELPS_BELOW:,} images", _NV),
        Setting("ada.kimg", speed, "100 from trained networks or below 5000 images, else 500", _NV),
    ]


def _twins(counts: np.ndarray, classes: int) -> list[Setting]:
    """Return NoisyTwins' σ, α, λ and γ: those of the published data set that is most like this one."""
    if classes > _MANY_CLASSES:
        like, values = f"iNaturalist 2019: more than {_MANY_CLASSES} classes", (0.1, 0.0, 0.001, 0.005)
    elif counts.max() >= _LONG_TAIL * counts.min():
        like, values = "CIFAR10-LT: few classes with a long tail", (0.75, 0.99, 0.01, 0.05)
    else:
        like, values = "AnimalFace: few classes without a long tail", (0.5, 0.0, 0.001, 0.05)
    fields = ("noisytwins.sigma", "noisytwins.alpha", "noisytwins.weight", "noisytwins.gamma")
    return [Setting(field, value, f"as {like}", _NT) for field, value in zip(fields, values, strict=True)]


def _division(batch: int, resolution: int, memory: float) -> list[Setting]:
    fitting = max(1.0, (memory - _FIXED_MEMORY) / (_ACTIVATIONS * resolution**2))
    device_batch = 2 ** int(np.log2(fitting))
    rule = f"{memory / 1e9:.0f} GB of memory, 5 kB a pixel of an image"
    if device_batch >= batch:
        return [Setting("device_batch", 0, f"the whole batch at once: {rule}", _HERE)]
    return [Setting("device_batch", device_batch, rule, _HERE), Setting("remat", True, "the batch is divided", _HERE)]
