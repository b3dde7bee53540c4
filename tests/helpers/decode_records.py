"""Decoding of whole records of prepared data; the package reads only their pixels."""

import numpy as np

from noisytwins_jax.data.records import Record, _example_class


def decode(data: bytes, shape: tuple[int, int, int]) -> Record:
    """Decode a serialized example whose image has shape ``[H, W, C]``."""
    feature = _example_class().FromString(data).features.feature
    return Record(
        np.frombuffer(feature["image"].bytes_list.value[0], np.uint8).reshape(shape),
        feature["label"].int64_list.value[0],
        feature["id"].bytes_list.value[0].decode(),
        np.array(feature["factors"].float_list.value, np.float32) if "factors" in feature else None,
    )
