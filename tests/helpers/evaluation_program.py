"""One evaluation in a process of its own; prints evaluation's JSON. See `test_same_evaluation`.

python tests/helpers/evaluation_program.py SCRATCH BATCH_SIZE STOP_AFTER NETWORK

After STOP_AFTER parts (0: never) the process kills itself. NETWORK is classifier, or inception for FID's network and a
small CLIP tower, both with weights drawn at random.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import tiny_run

from noisytwins_jax.data.registry import load_data
from noisytwins_jax.evaluation import generated_features, run_evaluation
from noisytwins_jax.metrics import real_features
from noisytwins_jax.metrics import resumable_chunks as parts
from noisytwins_jax.metrics.extractors.clip import clip_extractor
from noisytwins_jax.metrics.extractors.inception import SIZE, Inception, inception_extractor
from noisytwins_jax.metrics.extractors.vit import VisionTransformer, VitConfig
from noisytwins_jax.training.build_model import build_model

TOWER = VitConfig(32, 8, 32, 2, 4, 64, 1e-5, "quick_gelu", input_norm=True, patch_bias=False, projection_dim=16)


def extractors():
    inception = jax.jit(Inception().init)(jax.random.key(1), jnp.zeros((1, SIZE, SIZE, 3)))
    tower = jax.jit(VisionTransformer(TOWER).init)(jax.random.key(2), jnp.zeros((1, 32, 32, 3)))
    return {
        "inception": inception_extractor(jax.tree.map(np.asarray, inception), "1" * 64, "tf1"),
        "clip": clip_extractor(jax.tree.map(np.asarray, tower), TOWER, "2" * 64, "openai"),
    }


def main(scratch: str, batch_size: int, stop_after: int, network: str) -> None:
    fields = {
        "evaluation.batch_size": batch_size,
        "evaluation.samples_per_class": 24,
        "evaluation.truncations": "1,0.5",
    }
    generated_features._PART = real_features._PART = 30  # images: several parts
    if network == "inception":
        fields |= {"evaluation.protocol": "tf1", "data.options": {"num_classes": 2, "num_images": 40, "channels": 3}}
        fields |= {"evaluation.samples_per_class": 10}
        generated_features._PART = real_features._PART = 10
        run_evaluation.load_extractors = lambda *_: extractors()
    config = tiny_run.tiny_config(**fields)
    splits = load_data(config.data)
    model = build_model(config, splits.train.channels, splits.train.num_classes)
    z, labels = jnp.zeros((1, config.generator.z_dim)), jnp.zeros(1, jnp.int32)
    variables = model.generator.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, z, labels)
    write, written = parts._write, []

    def write_and_die(path, arrays):
        write(path, arrays)
        written.append(path)
        if len(written) == stop_after:
            os.kill(os.getpid(), signal.SIGKILL)

    parts._write = write_and_die
    workdir = Path(scratch)
    workdir.mkdir(parents=True, exist_ok=True)
    result = run_evaluation.evaluate_variables(config, variables, splits, workdir)
    left = sorted(path.name for path in workdir.rglob("part_*"))
    print(json.dumps({"result": result, "written": len(written), "left": left, "devices": jax.device_count()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
