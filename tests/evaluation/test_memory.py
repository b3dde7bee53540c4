"""What an evaluation needs is said before it runs, from the programs that then run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from noisytwins_jax.evaluation import memory
from noisytwins_jax.evaluation.evaluate_generator import evaluate_generator
from noisytwins_jax.evaluation.memory import print_memory
from noisytwins_jax.generation.sampler import Sampler
from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.features import Embedder, HostFakes
from noisytwins_jax.metrics.settings import Settings
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.utils.errors import UserError

SIZE = (8, 8, 1)
WEIGHTS = np.ones((64, 250_000), np.float32)  # 64 MB


@pytest.fixture(autouse=True)
def nothing_said_before():
    memory._print_once.cache_clear()


def embedder():
    def apply(weights, images):
        return images.reshape(len(images), -1).astype(jnp.float32) @ weights, jnp.zeros((len(images), 0))

    return Embedder({"wide": FeatureExtractor("wide", "0", {}, WEIGHTS.shape[1], WEIGHTS, apply)}, per_device_batch=2)


@pytest.fixture
def compilations():
    events = []

    def record(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(duration)

    jax.monitoring.register_event_duration_secs_listener(record)
    yield events
    jax.monitoring.unregister_event_duration_listener(record)


def test_largest_program_is_said_and_nothing_is_compiled_twice(compilations, capsys):
    config = tiny_run.tiny_config()
    model = build_model(config, 1, 4)
    variables, _ = model.init(jax.random.key(0))
    sampler, features = Sampler(model, config.z, variables, per_device_batch=2), embedder()
    for _ in range(2):  # said once
        print_memory(sampler, features, SIZE)
    said = capsys.readouterr().out
    assert (
        said.count("\n") == 1
        and said.startswith("Evaluating needs 6")
        and " MB of a device's " in said
        and "(program: wide)" in said
    )
    assert compilations
    compilations.clear()
    features.embed_fakes(sampler, np.zeros(3, np.int32), np.arange(3), SIZE)
    assert not compilations


def test_images_from_files_need_extractors_only(capsys):
    print_memory(HostFakes(lambda labels, indices: None), embedder(), SIZE)
    assert "(program: wide)" in capsys.readouterr().out


def test_running_out_of_memory_is_explained(digits, digits_extractor):
    def exhausted(labels, indices):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")

    with pytest.raises(UserError, match="evaluate in a process of its own"):
        evaluate_generator(
            HostFakes(exhausted),
            reference=digits.reference,
            extractors={"classifier": digits_extractor},
            class_groups={"all": range(10)},
            settings=Settings(samples_per_class=60),
        )
