"""The public files of the data sets that anybody may download, and where they are put.

The SHA-256 are those that TFDS records, and their MD5 those of torchvision; of AnimalFace none is published.
"""

from pathlib import Path
from typing import NamedTuple

from noisytwins_jax.utils.download import RemoteFile, download


class PublicSet(NamedTuple):
    """Files of a data set that need no registration.

    Attributes:
      folder: where they are put, in the folder of downloads.
      files: the files.
      installed: folder in which a package of the operating system installs them; empty for none.
    """

    folder: str
    files: tuple[RemoteFile, ...]
    installed: str = ""


def _set(folder: str, base: str, terms: str, *files: tuple[str, int, str], installed: str = "") -> PublicSet:
    """Build a set of files (name, bytes, SHA-256) that have one address but for the name, and the same terms."""
    remote = tuple(RemoteFile(f"{base}/{name}", size, sha256, terms) for name, size, sha256 in files)
    return PublicSet(folder, remote, installed)


_CIFAR, _CIFAR_TERMS = (
    "https://www.cs.toronto.edu/~kriz",
    "none stated, see https://www.cs.toronto.edu/~kriz/cifar.html",
)
_FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
_HIT = "https://vcla.stat.ucla.edu/people/zhangzhang-si/HiT"
_ANIMAL_FACE = _set("animal_face", _HIT, f"none stated, see {_HIT}/exp5.htm", ("AnimalFace.zip", 0, ""))
PUBLIC_SETS = {
    "cifar10_lt": _set(
        *("cifar10", _CIFAR, _CIFAR_TERMS),
        ("cifar-10-binary.tar.gz", 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    ),
    "cifar100_lt": _set(
        *("cifar100", _CIFAR, _CIFAR_TERMS),
        ("cifar-100-binary.tar.gz", 168_513_733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
    ),
    "flowers_lt": _set(
        *("flowers102", _FLOWERS, f"none stated, see {_FLOWERS}"),
        ("102flowers.tgz", 344_862_509, "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246"),
        ("imagelabels.mat", 502, "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d"),
    ),
    "animal_face": _ANIMAL_FACE,
    "animal_faces_lt": _ANIMAL_FACE,
    "fashion_mnist_lt": _set(
        *("fashion_mnist", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
        "MIT, https://github.com/zalandoresearch/fashion-mnist",
        ("train-images-idx3-ubyte.gz", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte.gz", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        installed="/usr/share/datasets/fashion-mnist",  # Debian's dataset-fashion-mnist
    ),
    "mnist_lt": _set(
        *("mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
        "CC BY-SA 3.0, http://yann.lecun.com/exdb/mnist",
        ("train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
}


def get_source(public: PublicSet, downloads: Path) -> Path:
    """Return the ``--source`` of a public data set, downloading what is missing: the only file, or the folder of all.

    Args:
      public: the data set.
      downloads: folder of downloads; what is in its folder `public.folder` is not downloaded again.

    Raises:
      UserError: a file cannot be downloaded, or is not the published one.
    """
    if public.installed and Path(public.installed).is_dir():
        return Path(public.installed)
    folder = downloads / public.folder
    by_hand = f"put it into {folder}, or give --source"
    paths = [download(file, folder, by_hand) for file in public.files]
    return paths[0] if len(paths) == 1 else folder
