"""Features of images on the host, for tests."""

from noisytwins_jax.metrics.features import Embedder, Features


def features_of(extractor, images, size=256) -> Features:
    return Embedder({"it": extractor}, size).embed_images(images)["it"]
