"""Class statistics of long-tailed label sets: image counts and head/medium/tail groups."""

from collections.abc import Sequence

import numpy as np

from noisytwins_jax.utils.errors import UserError

_MAX_NAMED = 10


def long_tail_counts(largest: int, num_classes: int, imbalance_factor: float) -> np.ndarray:
    """Compute the images per class of an exponential long tail.

    ``n_c = int(largest * imbalance_factor**(c / (num_classes - 1)))``

    This is the profile of CIFAR10-LT in NoisyTwins (CVPR 2023, section 5), where ``largest`` is 5000 and
    ``imbalance_factor`` is 0.01.

    Args:
      largest: images of class 0, the most frequent class; at least 1.
      num_classes: number of classes; at least 1.
      imbalance_factor: images of the rarest class over images of the most frequent one, in (0, 1]; 1 is balanced.

    Returns:
      int64 ``[num_classes]``, non-increasing, every entry at least 1.

    Raises:
      UserError: an argument is out of range, or a class would have no image.
    """
    if largest < 1 or num_classes < 1:
        raise UserError(
            f"A long tail needs at least one image and one class, but largest is {largest} and "
            f"num_classes is {num_classes}; make both positive."
        )
    if not 0 < imbalance_factor <= 1:
        raise UserError(
            f"imbalance_factor must be above 0 and at most 1, but it is {imbalance_factor}; it is the size of the "
            "rarest class over the size of the most frequent class, e.g. 0.01."
        )
    exponents = [c / max(num_classes - 1, 1) for c in range(num_classes)]
    counts = np.array([int(largest * imbalance_factor**e) for e in exponents], dtype=np.int64)
    if counts[-1] < 1:
        raise UserError(
            f"With largest={largest} and imbalance_factor={imbalance_factor} the rarest class would have no image; "
            f"raise imbalance_factor to at least {1 / largest:.4g}."
        )
    return counts


def count_classes(labels: np.ndarray | Sequence[int], num_classes: int) -> np.ndarray:
    """Count the images of each class, and check that every class has some.

    Args:
      labels: integers ``[num_images]``, each in ``[0, num_classes)``.
      num_classes: number of classes; at least 1.

    Returns:
      int64 ``[num_classes]``, every entry at least 1.

    Raises:
      UserError: the labels are not a list of integers, lie outside the range, or leave classes empty.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(
            f"Labels must be a one-dimensional list of integer class ids, but they have shape {labels.shape} and "
            f"dtype {labels.dtype}; give one class id from 0 to {num_classes - 1} per image."
        )
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, but it is {num_classes}.")
    if labels.size == 0:
        raise UserError("The data set holds no images; check its path and its list of files.")
    labels = labels.astype(np.int64)
    outside = np.unique(labels[(labels < 0) | (labels >= num_classes)])
    if outside.size:
        raise UserError(
            f"Some images are labelled {_name_classes(outside)}, outside the range 0..{num_classes - 1}; "
            "renumber the labels from 0 or set num_classes to the number of classes in the data."
        )
    counts = np.bincount(labels, minlength=num_classes).astype(np.int64)
    empty = np.flatnonzero(counts == 0)
    if empty.size and empty[0] < labels.max():
        raise UserError(
            f"Class ids have gaps: there are no images of {_name_classes(empty)}, although higher ids have some; "
            "renumber the labels so that every id from 0 upwards is used, or add images of the missing classes."
        )
    if empty.size:
        raise UserError(
            f"There are no images of {_name_classes(empty)}; add some, or set num_classes to {labels.max() + 1}."
        )
    return counts


def class_groups(
    counts: np.ndarray | Sequence[int], thresholds: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """Split the classes into head, medium and tail.

    Args:
      counts: integers ``[num_classes]``, training images per class.
      thresholds: ``(low, high)`` in images. Head classes have more than ``high`` images, tail classes fewer than
        ``low``, medium classes the rest; the long-tail literature uses ``(20, 100)``. ``None`` splits the classes,
        sorted by frequency, into thirds instead (10 classes: 3, 4, 3), which suits sets of few classes; ties are
        broken by the lower class id.

    Returns:
      ``{"head", "medium", "tail"}``, each int64 class ids, the most frequent class first; a partition of all classes.
      A group may be empty.

    Raises:
      UserError: ``low`` is above ``high``.
    """
    counts = np.asarray(counts)
    by_frequency = np.argsort(-counts.astype(np.int64), kind="stable")
    if thresholds is None:
        third = round(len(counts) / 3)
        num_head, num_tail = third, third
    else:
        low, high = thresholds
        if low > high:
            raise UserError(
                f"The class-group thresholds must be (low, high) with low at most high, but they are {thresholds}; "
                "swap them."
            )
        num_head, num_tail = int((counts > high).sum()), int((counts < low).sum())
    head, medium, tail = np.split(by_frequency, [num_head, len(counts) - num_tail])
    return {"head": head, "medium": medium, "tail": tail}


def _name_classes(classes: np.ndarray) -> str:
    """Return the names of at most ten classes: class 3 / classes 3, 5 / classes 0, 1, ..., 9 and 7 more."""
    named = ", ".join(str(c) for c in classes[:_MAX_NAMED])
    more = f" and {len(classes) - _MAX_NAMED} more" if len(classes) > _MAX_NAMED else ""
    return f"{'class' if len(classes) == 1 else 'classes'} {named}{more}"
