"""The configuration fields of a data set."""

from dataclasses import dataclass, field

from noisytwins_jax.utils.config_fields import number


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    name: str = "digits_lt"  # a data set of `noisytwins_jax.data`
    resolution: int = 32  # pixels, a power of two from 8
    mirror: bool = True  # random horizontal flips of real images
    options: dict = field(default_factory=dict)  # arguments of an embedded data set's builder
    dir: str = "data"  # holds prepared data sets: a directory, or the address of a bucket (gs://, s3://, …)
    cache: str = ""  # where prepared data of a bucket are kept on this machine; by default in ~/.cache
    preprocessing: str = ""  # what prepared images must have gone through, see data.preprocessing; empty for anything
    # Classes with fewer training images are tail, with more are head; without these two, thirds of the classes.
    tail_below: int = number(0, at_least=0)
    head_above: int = number(0, at_least=0)

    @property
    def group_thresholds(self) -> tuple[int, int] | None:
        """What splits classes into head, medium and tail; see `data.long_tail.class_groups`."""
        return (self.tail_below, self.head_above) if self.tail_below or self.head_above else None
