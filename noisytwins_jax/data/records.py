"""Records of prepared data: one `tf.train.Example` per image, as TFDS reads them, without TensorFlow.

An example holds ``image`` (raw bytes of uint8 ``[H, W, C]``, row major), ``label`` (int64), ``id`` (text, the image's
name in its source) and, for rendered images, ``factors`` (float32 ``[F]``).
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto


class Record(NamedTuple):
    """A stored image with its label, name and factors."""

    image: np.ndarray  # uint8 [H, W, C]
    label: int
    name: str
    factors: np.ndarray | None = None  # float32 [F]


def encode(record: Record) -> bytes:
    """Serialize a record as an example; equal records give equal bytes."""
    example = _example_class()()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(np.ascontiguousarray(record.image).tobytes())
    feature["label"].int64_list.value.append(record.label)
    feature["id"].bytes_list.value.append(record.name.encode())
    if record.factors is not None:
        feature["factors"].float_list.value.extend(record.factors.tolist())
    return example.SerializeToString(deterministic=True)


def decode_image(data: bytes) -> np.ndarray:
    """Read only the pixels of a serialized example, uint8 ``[H·W·C]`` (read-only).

    Raises:
      ValueError: the bytes are not an example with an image.
    """
    try:
        return np.frombuffer(_example_class().FromString(data).features.feature["image"].bytes_list.value[0], np.uint8)
    except Exception as error:  # types of protobuf, or no value
        raise ValueError(f"not a record of prepared images ({error})") from error


@functools.cache
def _example_class() -> Any:
    """Build the message `tensorflow.Example` from its public definition, in a pool separate from TensorFlow's."""
    file = descriptor_pb2.FileDescriptorProto(
        name="noisytwins_jax/example.proto", package="tensorflow", syntax="proto3"
    )
    for name, kind in (("BytesList", "BYTES"), ("FloatList", "FLOAT"), ("Int64List", "INT64")):
        _add_field(file.message_type.add(name=name), "value", 1, kind, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, kind in enumerate(("BytesList", "FloatList", "Int64List"), start=1):
        field = _add_field(feature, f"{kind[:-4].lower()}_list", number, "MESSAGE", type_name=f".tensorflow.{kind}")
        field.oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    _add_field(entry, "key", 1, "STRING")
    _add_field(entry, "value", 2, "MESSAGE", type_name=".tensorflow.Feature")
    _add_field(features, "feature", 1, "MESSAGE", repeated=True, type_name=".tensorflow.Features.FeatureEntry")
    example = file.message_type.add(name="Example")
    _add_field(example, "features", 1, "MESSAGE", type_name=".tensorflow.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def _add_field(
    message: Any, name: str, number: int, kind: str, repeated: bool = False, type_name: str | None = None
) -> Any:
    return message.field.add(
        name=name,
        number=number,
        type=getattr(_Field, f"TYPE_{kind}"),
        label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL,
        type_name=type_name,
    )
