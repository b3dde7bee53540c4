"""Feature extractors by name: those whose weights are public files, and the embedded classifier."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from noisytwins_jax.metrics.extractors import classifier, clip, dinov2, inception, weights
from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.extractors.clip import clip_extractor
from noisytwins_jax.metrics.extractors.clip import from_state_dict as clip_from_state_dict
from noisytwins_jax.metrics.extractors.dinov2 import dinov2_extractor
from noisytwins_jax.metrics.extractors.dinov2 import from_state_dict as dinov2_from_state_dict
from noisytwins_jax.metrics.extractors.file_extractor import load_file_extractor
from noisytwins_jax.metrics.extractors.inception import SIZE, Inception, inception_extractor
from noisytwins_jax.metrics.extractors.inception import from_state_dict as inception_from_state_dict
from noisytwins_jax.metrics.extractors.vit import VisionTransformer
from noisytwins_jax.metrics.protocols import CLASSIFIER, CLIP, EXTRACTORS, FILE, INCEPTION, PROTOCOLS, Protocol


def check_weights(chosen: Mapping[str, str], directory: str = "", download: bool = False) -> None:
    """Check that the weights of extractors exist and own extractors can be used, before any other work.

    Args:
      chosen: kind → network, from `protocols.parse_extractors`.
      directory: of converted weights; for the default see `weights`.
      download: whether to download and convert those that are missing.

    Raises:
      UserError: weights are missing, and the message names the command that gets them; or they cannot be downloaded. Or
        the file of an own extractor is none.
    """
    if FILE in chosen:
        load_file_extractor(chosen[FILE])
    networks = [network for kind, network in chosen.items() if kind not in (CLASSIFIER, FILE)]
    if download:
        for message in weights.get(weights.find_missing(networks, directory or None), directory or None):
            print(message, flush=True)
    weights.check(networks, directory or None)


@functools.lru_cache(maxsize=4)  # training evaluates again and again
def load_extractor(kind: str, network: str, protocol_name: str, directory: str = "") -> FeatureExtractor:
    """Load an extractor with the weights of its file and the preprocessing of the named protocol.

    Raises:
      UserError: the file is missing or damaged.
    """
    if kind == FILE:
        return load_file_extractor(network)
    protocol = PROTOCOLS[protocol_name]
    state, info = weights.load_network(network, directory or None)
    if kind == INCEPTION:
        return _build(kind, protocol, inception_from_state_dict(state), None, info["sha256"], info["origin"])
    from_state_dict = clip_from_state_dict if kind == CLIP else dinov2_from_state_dict
    return _build(kind, protocol, *from_state_dict(state), info["sha256"], info["origin"])


def feature_dim(name: str) -> int:
    """Return the feature dimension of an extractor of `protocols.EXTRACTORS`, without loading its weights."""
    kind, network = EXTRACTORS[name]
    if kind in (CLASSIFIER, INCEPTION):
        return classifier.FEATURE_DIM if kind == CLASSIFIER else inception.FEATURE_DIM
    return (clip.CONFIGS if kind == CLIP else dinov2.CONFIGS)[network].feature_dim


def abstract_extractor(kind: str, network: str, protocol: Protocol) -> FeatureExtractor:
    """Build an extractor whose variables are shapes, to be compiled but not run."""
    if kind == INCEPTION:
        model, config, size = Inception(), None, SIZE
    else:
        config = (clip.CONFIGS if kind == CLIP else dinov2.CONFIGS)[network]
        model, size = VisionTransformer(config), config.image_size
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3))))
    return _build(kind, protocol, variables, config, "", "")


def _build(kind: str, protocol: Protocol, variables: Any, config: Any, sha256: str, origin: str) -> FeatureExtractor:
    preprocessing = protocol.preprocessing[kind]
    if kind == INCEPTION:
        return inception_extractor(variables, sha256, preprocessing, origin, unbiased_logits=protocol.unbiased_logits)
    extractor = clip_extractor if kind == CLIP else dinov2_extractor
    return extractor(variables, config, sha256, preprocessing, origin)
