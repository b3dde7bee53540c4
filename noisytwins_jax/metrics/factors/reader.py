"""The factor network of one data set, trained once and cached beside the runs, and its report on generated images."""

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from noisytwins_jax.data.source import ImageSource
from noisytwins_jax.metrics.extractors.weights_file import Params, load_weights, save_weights
from noisytwins_jax.metrics.factors.coverage import factor_report
from noisytwins_jax.metrics.factors.network import NETWORK, RECIPE, Predictions, predict, train_regressor

_BATCH = 64
_EPOCHS = 20


class FactorReader:
    """Predictor of class and factors of images, with a report on its predictions.

    Args:
      params: weights of `factors.network.FactorNetwork`.
      training: how it was trained, recorded.
      held_out: real images that it was not trained on, with their factors.
    """

    def __init__(self, params: Params, training: Mapping[str, Any], held_out: ImageSource) -> None:
        self._params, self._training, self._held_out = params, training, held_out

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict classes int32 ``[n]`` and factors float32 ``[n, F]`` in [0, 1] of images uint8 ``[n, H, W, C]``."""
        return predict(self._params, images, self._held_out.num_classes)

    def report(
        self,
        labels: np.ndarray,
        predictions: Sequence[np.ndarray],
        class_groups: Mapping[str, Sequence[int] | np.ndarray],
    ) -> dict[str, Any]:
        """Compute the metrics of generated images, as `factors.coverage` describes them.

        Args:
          labels: integers ``[n]``, labels of the generated images.
          predictions: classes and factors from calling this object on them.
          class_groups: name -> class ids.
        """
        held_out = self._held_out
        return factor_report(
            self._params,
            fake_labels=labels,
            fake=Predictions(*predictions),
            held_out_labels=held_out.labels,
            held_out_factors=held_out.factors,
            held_out=predict(self._params, held_out, held_out.num_classes),
            factor_names=held_out.factor_names,
            num_classes=held_out.num_classes,
            training=self._training,
            class_groups=class_groups,
        )


def training_steps(num_images: int, num_classes: int) -> int:
    """Return the steps of training: 20 epochs, but at least 50, and at most 1000 or 50 per class, whichever is more.

    Many classes need the latter: of 100 species of petals at 32 px, 1000 steps recognise .50 of held-out images, 5000 .99.
    """
    return int(np.clip(_EPOCHS * num_images // _BATCH, 50, max(1000, 50 * num_classes)))


def load_or_train_weights(source: ImageSource, cache_dir: Path, seed: int = 0) -> tuple[Params, dict[str, Any]]:
    """Load a factor network's weights and how they were trained from the cache, or train and cache them.

    Args:
      source: real, balanced images with factors.
      cache_dir: folder of the file, which is named after data, network, recipe and seed.
      seed: of initialisation and order.

    Raises:
      UserError: training diverged.
    """
    steps = training_steps(len(source), source.num_classes)
    training = {"images": len(source), "fingerprint": source.fingerprint, "steps": steps, "seed": seed}
    key = hashlib.sha256(json.dumps([training, NETWORK, RECIPE], sort_keys=True).encode()).hexdigest()
    path = Path(cache_dir) / f"factors-{key[:16]}.npz"
    cached = load_weights(path, training)
    if cached is None:
        print(f"Training the factor network on {len(source)} real images (once; stored in {path}).", flush=True)
        began = time.perf_counter()
        with tqdm(total=steps, unit="step", dynamic_ncols=True, disable=None, file=sys.stdout) as bar:
            params = train_regressor(
                source,
                source.labels,
                source.factors,
                source.num_classes,
                seed,
                steps=steps,
                batch_size=_BATCH,
                progress=lambda done, _: bar.update(done - bar.n),
            )
        save_weights(path, params, training, "The factor network")
        print(f"Factor network ready in {time.perf_counter() - began:.1f} s.", flush=True)
        return params, training
    return cached
