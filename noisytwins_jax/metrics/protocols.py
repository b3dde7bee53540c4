"""Named evaluation protocols: "FID" is a dozen different numbers unless resizing, scaling and formulas are pinned.

The numbers of images are the configuration's, and are recorded beside every number.

| protocol | Inception input | CLIP input | DINOv2 input | IS | neighbours | as in |
|---|---|---|---|---|---|---|
| ``noisytwins`` | bilinear, no antialias, x/127.5 - 1 | bicubic, no antialias | Pillow bicubic, uint8 | 1008 logits, 1 split | k = 5, < | NoisyTwins, StudioGAN |
| ``tf1`` | TF1 bilinear, (x - 128)/128 | Pillow bicubic, uint8 | bicubic, antialiased | unbiased, 10 splits | k = 5, < | TTUR, StyleGAN |
| ``utlo`` | as ``tf1`` | as ``tf1`` | as ``tf1`` | as ``tf1`` | k = 5, < | UTLO, Content–Style: all images before the tail was cut off, and the few classes alone |
| ``clean`` | Pillow bicubic in float, (x - 128)/128 | Pillow bicubic, uint8 | Pillow bicubic, uint8 | unbiased, 10 splits | k = 5, < | clean-fid |
| ``fidelity`` | TF1 bilinear, (x - 128)/128 | TF1 bilinear | Pillow bicubic, uint8 | unbiased, 10 splits | k = 3, <= | torch-fidelity |
| ``embedded`` | | | | the classifier's logits, 1 split | k = 5, < | this project |

Common to all: images are 8-bit RGB, resized images are not rounded again unless the table says so, feature statistics are
float64, covariances have n - 1 in the denominator. ``embedded`` needs no weight files: its network is a classifier of the
data set. With every protocol an extractor of the user's own (``file:PATH``) can be the headline's, in place of the first.
"""

import dataclasses
from collections.abc import Mapping

from noisytwins_jax.utils.errors import UserError, did_you_mean

CLASSIFIER, INCEPTION, CLIP, DINOV2, FILE = "classifier", "inception", "clip", "dinov2", "file"  # kinds of extractors
# Extractor -> its kind and the network whose weights it uses; an evaluation has one of each kind.
EXTRACTORS: dict[str, tuple[str, str]] = {
    "classifier": (CLASSIFIER, ""),
    "inception": (INCEPTION, "inception"),
    "clip": (CLIP, "clip-vit-b32"),
    "clip-vit-b32": (CLIP, "clip-vit-b32"),
    "clip-vit-l14": (CLIP, "clip-vit-l14"),
    "clip-vit-l14-336": (CLIP, "clip-vit-l14-336"),
    "dinov2": (DINOV2, "dinov2-vitl14"),
    "dinov2-vits14": (DINOV2, "dinov2-vits14"),
    "dinov2-vitb14": (DINOV2, "dinov2-vitb14"),
    "dinov2-vitl14": (DINOV2, "dinov2-vitl14"),
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One row of the module's table.

    Attributes:
      name: its name.
      extractors: the default ones, the headline's first.
      preprocessing: kind of extractor → name of its preprocessing.
      neighbours: k of precision, recall, density and coverage.
      inclusive: whether a point on a ball's surface is inside (``<=``).
      unbiased_logits: whether the Inception Score's logits are without the bias.
      splits: number of parts whose Inception Scores are averaged.
      shuffle_seed: of the shuffle before splitting; None for the order of generation.
      kid_subsets: number of pairs of subsets that KID is averaged over.
      kid_subset_size: the most images of a subset.
      few: whether to compare with all images before the tail was cut off, at their class frequencies, and the few classes
        alone; see `evaluation.few_classes`.
    """

    name: str
    extractors: tuple[str, ...] = ("inception", "clip")
    preprocessing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    neighbours: int = 5
    inclusive: bool = False
    unbiased_logits: bool = True
    splits: int = 10
    shuffle_seed: int | None = 2020
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    few: bool = False


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("embedded", ("classifier",), splits=1, shuffle_seed=None, unbiased_logits=False),
        Protocol(
            "noisytwins",
            preprocessing={INCEPTION: "noisytwins", CLIP: "noisytwins", DINOV2: "dgm-eval"},
            unbiased_logits=False,
            splits=1,
            shuffle_seed=None,
        ),
        Protocol("tf1", preprocessing={INCEPTION: "tf1", CLIP: "openai", DINOV2: "edm2"}),
        Protocol("utlo", ("inception",), preprocessing={INCEPTION: "tf1", CLIP: "openai", DINOV2: "edm2"}, few=True),
        Protocol("clean", preprocessing={INCEPTION: "clean", CLIP: "openai", DINOV2: "dgm-eval"}),
        Protocol(
            "fidelity",
            preprocessing={INCEPTION: "tf1", CLIP: "fidelity", DINOV2: "dgm-eval"},
            neighbours=3,
            inclusive=True,
        ),
    )
}


def parse_extractors(protocol: Protocol, names: str = "") -> dict[str, str]:
    """Parse a comma-separated list of extractors into kind → network, the headline's first; by default the protocol's.

    The network of ``file:PATH`` is the path.

    Raises:
      UserError: an unknown name, two of one kind, or extractors that do not belong to the protocol.
    """
    chosen: dict[str, str] = {}
    for name in [word.strip() for word in names.split(",") if word.strip()] or protocol.extractors:
        if name not in EXTRACTORS and not name.startswith(f"{FILE}:"):
            raise UserError(
                f"config.evaluation.extractors has no {name!r}; {did_you_mean(name, EXTRACTORS)} (or file:PATH)"
            )
        kind, network = EXTRACTORS.get(name) or name.split(":", 1)
        if kind in chosen:
            raise UserError(f"config.evaluation.extractors={names} names two networks of the kind {kind}; choose one.")
        chosen[kind] = network
    first = next(iter(chosen))
    if FILE in chosen:
        others = (CLASSIFIER,) if protocol.name == "embedded" else (CLASSIFIER, CLIP, DINOV2)
        if first != FILE or not {*chosen} <= {FILE, *others}:
            raise UserError(
                f"config.evaluation.extractors={names}: an extractor from a file is the one of FID and comes first; after it, "
                f"the protocol {protocol.name} can have {', '.join(others)}."
            )
        return chosen
    if (first == CLASSIFIER) != (protocol.name == "embedded") or (protocol.name == "embedded" and len(chosen) > 1):
        raise UserError(
            f"config.evaluation.extractors={names} does not go with config.evaluation.protocol={protocol.name}: the protocol "
            "embedded measures with the classifier alone, the others begin with inception, clip or dinov2."
        )
    return chosen
