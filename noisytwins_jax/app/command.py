"""``python -m noisytwins_jax.app --workdir=DIR``: a page in the browser to play with a trained generator.

It is served to this machine alone. With --host=0.0.0.0 others reach it too, and need the token that is printed.
"""

import argparse
import errno
import re
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from noisytwins_jax.app.access import is_loopback
from noisytwins_jax.utils.errors import UserError

_SHORTEST_TOKEN = 12


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m noisytwins_jax.app", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="a run, or a directory written by convert")
    parser.add_argument("--checkpoint", default="latest", help="latest, best or a step (default: latest)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    parser.add_argument("--token", help="that every request needs (default: beyond 127.0.0.1 one is made and printed)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        token = choose_token(arguments.host, arguments.token)
        check_address(arguments.host, arguments.port)
        open_page(arguments.workdir, arguments.checkpoint, arguments.host, arguments.port, token)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def open_page(
    workdir: Path, checkpoint: str = "latest", host: str = "127.0.0.1", port: int = 7860, token: str | None = None
) -> None:
    """Load a run's generator, compile its programs, and serve the page until interrupted.

    Raises:
      UserError: Gradio is not installed, or the run or checkpoint does not exist.
    """
    from noisytwins_jax.app.serve import check_installed, serve
    from noisytwins_jax.training.restore import check_has_checkpoint

    check_has_checkpoint(workdir, checkpoint)
    check_installed()
    from noisytwins_jax.app.class_list import read_class_list
    from noisytwins_jax.app.painter import Painter
    from noisytwins_jax.generation.trained_generator import load

    trained = load(workdir, checkpoint)
    classes = read_class_list(workdir, trained.config, trained.class_names)
    painter = Painter(trained, classes)
    seconds = painter.warm_up(lambda name: print(f"Compiling: {name}", flush=True))
    query = "" if token is None else f"?token={token}"
    name = "127.0.0.1" if is_loopback(host) else host if host not in ("0.0.0.0", "::") else socket.gethostname()
    print(f"Open http://{f'[{name}]' if ':' in name else name}:{port}/{query} (stop with Ctrl+C)", flush=True)
    serve(painter, workdir.absolute().name, seconds, host, port, token)


def choose_token(host: str, token: str | None) -> str | None:
    """Return the token that requests need: the given one, or a new one where others can reach the page; None for none.

    Raises:
      UserError: the given one could be guessed, or cannot be part of an address.
    """
    if token is None:
        return None if is_loopback(host) else secrets.token_urlsafe(24)
    if not re.fullmatch(r"[\w.~-]+", token, re.ASCII) or len(token) < _SHORTEST_TOKEN:
        raise UserError(
            f"--token needs at least {_SHORTEST_TOKEN} letters, digits or -._~; leave it out to have one made."
        )
    return token


def check_address(host: str, port: int) -> None:
    """Check that the address can be listened on, before anything is computed.

    Raises:
      UserError: it cannot.
    """
    if not 1 <= port <= 65535:
        raise UserError(f"--port={port} is no port; give one from 1 to 65535.")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"Port {port} is in use; give another with --port.") from None
        raise UserError(f"--host={host} with --port={port} cannot be listened on ({error.strerror}).") from None
