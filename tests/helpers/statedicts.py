"""Lists of the tensors in public checkpoints, made by building the networks with their own code."""

import gzip
import json

from paths import TESTS

LISTS = TESTS / "statedict"


def statedict(name: str) -> dict:
    """The list of that name in tests/statedict: by module ``[key, shape, "param" or "buffer", dtype]``."""
    return json.loads(gzip.decompress((LISTS / f"{name}.json.gz").read_bytes()))


def statedicts(part: str) -> list[str]:
    """Names of the lists with `part` in their name, sorted."""
    return sorted(path.name.removesuffix(".json.gz") for path in LISTS.glob(f"*{part}*.json.gz"))
