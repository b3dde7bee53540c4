"""The `factor_network` of one data set: trained once, kept beside the runs, and what it says of generated images."""

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
_PASSES, _FEWEST_STEPS, _MOST_STEPS = 20, 50, 1000  # over the images, and limits of the steps that they make


class FactorReader:
    """Reads class and factors off images, and sums up what it read.

    Args:
      params: weights of `factor_network.FactorNetwork`.
      training: what it was trained on and how, recorded.
      held_out: real images that it was not trained on, with their factors.
    """

    def __init__(self, params: Params, training: Mapping[str, Any], held_out: ImageSource) -> None:
        self._params, self._training, self._held_out = params, training, held_out

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 ``[n, H, W, C]`` → classes int32 ``[n]`` and factors float32 ``[n, F]`` in [0, 1]."""
        return predict(self._params, images, self._held_out.num_classes)

    def report(
        self,
        labels: np.ndarray,
        read: Sequence[np.ndarray],
        class_groups: Mapping[str, Sequence[int] | np.ndarray],
    ) -> dict[str, Any]:
        """The metrics of generated images, as `factors` describes them.

        Args:
          labels: integers ``[n]``, the classes that were asked for.
          read: what calling this gave for them.
          class_groups: name -> class ids.
        """
        held_out = self._held_out
        return factor_report(
            self._params,
            fake_labels=labels,
            fake=Predictions(*read),
            held_out_labels=held_out.labels,
            held_out_factors=held_out.factors,
            held_out=predict(self._params, held_out, held_out.num_classes),
            factor_names=held_out.factor_names,
            num_classes=held_out.num_classes,
            training=self._training,
            class_groups=class_groups,
        )


def load_or_train_weights(source: ImageSource, cache_dir: Path, seed: int = 0) -> tuple[Params, dict[str, Any]]:
    """A reader's weights and how they were trained: from the cache if they are there, else trained and cached.

    It takes as many steps as make twenty passes over the images, from 50 to 1000 of 64 images.

    Args:
      source: real, balanced images with factors.
      cache_dir: where they are kept, named after data, network, recipe and seed.
      seed: of initialisation and order.

    Raises:
      UserError: training diverged.
    """
    steps = int(np.clip(_PASSES * len(source) // _BATCH, _FEWEST_STEPS, _MOST_STEPS))
    training = {"images": len(source), "fingerprint": source.fingerprint, "steps": steps, "seed": seed}
    key = hashlib.sha256(json.dumps([training, NETWORK, RECIPE], sort_keys=True).encode()).hexdigest()
    path = Path(cache_dir) / f"factors-{key[:16]}.npz"
    found = load_weights(path, training)
    if found is None:
        print(f"Training the reader of factors on {len(source)} real images (once; kept in {path}).", flush=True)
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
        save_weights(path, params, training, "The reader of factors")
        print(f"Reader of factors ready in {time.perf_counter() - began:.1f} s.", flush=True)
        return params, training
    return found
