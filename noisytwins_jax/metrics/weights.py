"""Weights of the public networks whose features the metrics use: publishers' files, converted once and found by name.

    python -m noisytwins_jax.metrics.weights get inception clip [--to=DIR]
    python -m noisytwins_jax.metrics.weights convert --from=FILE [--to=DIR] [--force]
    python -m noisytwins_jax.metrics.weights list [--to=DIR]

``get`` downloads the publishers' files, checks their SHA-256, converts them and removes them; what was interrupted is resumed.
The publishers' terms, which are printed, hold for the weights. ``convert`` reads a file that is here already: PyTorch's (also
TorchScript) or .safetensors, without PyTorch. The network is recognised by its tensors, all of which are checked. Both write
``<network>.safetensors``: float32, PyTorch's names and layouts, with one naming for each network (OpenAI's for CLIP,
facebookresearch's for DINOv2), so that equal weights of different publishers have the same SHA-256 and give the same features.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from noisytwins_jax.metrics.extractors.weights import (
    DEFAULT_DIRECTORY,
    DIRECTORY_VARIABLE,
    convert,
    describe_networks,
    get,
)
from noisytwins_jax.metrics.protocols import CLASSIFIER, EXTRACTORS
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.platform import expect_no_tpu, has_tpu


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = _Parser(
        prog="python -m noisytwins_jax.metrics.weights",
        description=__doc__.partition("\n\n")[2].partition("\n\n")[2],
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="get|convert|list")
    getting = commands.add_parser("get", help="download and convert the weights of networks")
    names = [name for name, (kind, _) in EXTRACTORS.items() if kind != CLASSIFIER]
    getting.add_argument("networks", nargs="+", metavar="NETWORK", help=", ".join(names))
    conversion = commands.add_parser("convert", help="convert a publisher's file for evaluations")
    conversion.add_argument("--from", dest="source", required=True, metavar="FILE", help="the publisher's file")
    conversion.add_argument("--force", action="store_true", help="replace other weights of the same network")
    listing = commands.add_parser("list", help="list the networks and which are converted")
    for command in (getting, conversion, listing):
        command.add_argument(
            "--to",
            metavar="DIR",
            help=f"the directory of converted files (default: ${DIRECTORY_VARIABLE}, or {DEFAULT_DIRECTORY})",
        )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; errors print one message and exit with status 2."""
    if not has_tpu():
        expect_no_tpu()
    try:
        arguments = build_parser().parse_args(argv)
        if arguments.command == "list":
            print(describe_networks(arguments.to))
        elif arguments.command == "get":
            for message in get(map(_parse_network, arguments.networks), arguments.to):
                print(message, flush=True)
        else:
            print(convert(arguments.source, arguments.to, arguments.force))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nStopped; run the same command to resume.", file=sys.stderr)
        sys.exit(130)


def _parse_network(name: str) -> str:
    """Return the network of an extractor's name; a network's own name stays as it is."""
    kind, network = EXTRACTORS.get(name, ("", name))
    if kind == CLASSIFIER:
        raise UserError("The classifier is trained on the data itself and has no public weights; leave it out.")
    return network


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]}; see --help.")


if __name__ == "__main__":
    main()
