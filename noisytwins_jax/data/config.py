"""The configuration fields of a data set."""

from dataclasses import dataclass, field

from noisytwins_jax.utils.config_fields import number


@dataclass(frozen=True)
class DataConfig:
    """The training data."""

    name: str = "digits_lt"  # an embedded or prepared data set, see `data.registry`
    resolution: int = 32  # pixels, a power of two from 8
    mirror: bool = True  # random horizontal flips of real images
    options: dict = field(default_factory=dict)  # arguments of an embedded data set's builder
    dir: str = "data"  # prepared data sets: a directory, or the address of a bucket (gs://, s3://, …)
    cache: str = ""  # local copies of prepared data from a bucket; by default in ~/.cache
    preprocessing: str = ""  # required preprocessing of prepared images, see `data.preprocessing`; empty for any
    # Classes with fewer training images are tail, with more are head; without these two, thirds of the classes.
    tail_below: int = number(0, at_least=0)
    head_above: int = number(0, at_least=0)

    @property
    def group_thresholds(self) -> tuple[int, int] | None:
        """The image counts that separate tail, medium and head classes; see `data.long_tail.class_groups`."""
        return (self.tail_below, self.head_above) if self.tail_below or self.head_above else None
