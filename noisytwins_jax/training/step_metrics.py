"""Metrics of training steps, from the device to the log."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np

from noisytwins_jax.training.step import Metrics


class Reported(NamedTuple):
    """Metrics of one update; or, of steps that ran as one program, of all runs of one update."""

    step: int  # number of the step, from 1; of several the first
    metrics: Metrics  # scalars, or [steps]
    ran: np.ndarray | None = None  # bool [steps]: in which of them it was due; None for scalars


def fetch_in_order(reported: Iterable[Reported]) -> list[tuple[int, dict[str, float]]]:
    """Fetch step and metrics of every update from the device, in the order they ran."""
    found: list[tuple[int, int, dict[str, float]]] = []
    for place, (step, metrics, ran) in enumerate(jax.device_get(list(reported))):
        if ran is None:
            found.append((step, place, {name: float(x) for name, x in metrics.items()}))
        else:
            rows = np.flatnonzero(ran)
            found += [(step + int(i), place, {name: float(x[i]) for name, x in metrics.items()}) for i in rows]
    return [(step, metrics) for step, _, metrics in sorted(found, key=lambda entry: entry[:2])]


def mean_metrics(updates: list[dict[str, float]]) -> dict[str, float]:
    """Compute the mean of each metric over the updates that reported it."""
    values: dict[str, list[float]] = {}
    for metrics in updates:
        for name, value in metrics.items():
            values.setdefault(name, []).append(value)
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}
