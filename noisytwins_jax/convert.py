"""Convert checkpoints of PyTorch into runs of this project, and runs into files of PyTorch, JAX and ONNX.

    python -m noisytwins_jax.convert from-torch FILE_OR_FOLDER ... --workdir=DIR [--config=configs/<dataset>.py:<method>]
    python -m noisytwins_jax.convert to-torch --workdir=DIR --out=DIR [--format=FORMAT] [--checkpoint=latest]
    python -m noisytwins_jax.convert to-jax --workdir=DIR --out=sampler.jax [--truncation=threshold:0.5]
    python -m noisytwins_jax.convert to-onnx --workdir=DIR --out=generator.onnx [--noise=const] [--truncation=threshold:0.5]

from-torch reads StyleGAN2 of StudioGAN, NoisyTwins and NVIDIA (.pkl), and BigGAN and BigGAN-deep of BigGAN-PyTorch,
StudioGAN, Hugging Face and TF-Hub (variables as .npz). The format is detected from the tensors; no code in a file is run.
With the configuration that it was trained with (and fields, as --config.batch_size=64), training can continue from it.
to-torch writes, for StyleGAN2, studiogan (which NoisyTwins' code reads), nvidia (state dicts) and nvidia_pkl (for
--resume); for BigGAN, bigganpytorch and studiogan; for BigGAN-deep also huggingface. The networks in PyTorch under
noisytwins_jax/interop/pytorch load them too. to-jax writes a sampler as one serialized function of JAX. to-onnx writes the
generator of any network for programs without JAX, after it drew the same images in onnxruntime.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from noisytwins_jax.utils.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"Error: {message} (--help says what there is.)", file=sys.stderr)
        sys.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="python -m noisytwins_jax.convert", description=__doc__, formatter_class=formatter)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="from-torch | to-torch | to-jax | to-onnx")
    reading = verbs.add_parser("from-torch", help="convert a public checkpoint into a run")
    reading.add_argument("files", nargs="+", type=Path, help="files of one checkpoint, or their folder")
    reading.add_argument("--workdir", required=True, type=Path, help="a new directory")
    reading.add_argument("--config", help="for further training, as of noisytwins_jax.main; its fields may follow")
    for name, text in (
        ("to-torch", "convert a run into a public checkpoint"),
        ("to-jax", "export a sampler that needs only JAX"),
        ("to-onnx", "export a generator as an ONNX file"),
    ):
        writing = verbs.add_parser(name, help=text)
        writing.add_argument("--workdir", required=True, type=Path, help="the run")
        writing.add_argument("--checkpoint", default="latest", help="latest, best or a step (default: latest)")
        writing.add_argument("--out", required=True, type=Path)
        if name == "to-torch":
            writing.add_argument("--format", default="", help="default: the first listed above for the network")
            writing.add_argument("--safetensors", action="store_true", help="only the networks, as .safetensors")
        else:
            writing.add_argument("--truncation", default="", help="of a BigGAN, as threshold:0.5")
        if name == "to-onnx":
            writing.add_argument("--noise", help="of StyleGAN2's pixels, const or none (default: const)")
        if name == "to-jax":
            writing.add_argument("--platforms", default="cpu,cuda,tpu", help="to run on, comma-separated")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments, overrides = build_parser().parse_known_args(argv)
    try:
        if overrides and (arguments.verb != "from-torch" or arguments.config is None):
            raise UserError(f"There is no option {overrides[0]}; --help says what there is.")
        verbs = {"from-torch": _from_torch, "to-torch": _to_torch, "to-jax": _to_jax, "to-onnx": _to_onnx}
        return verbs[arguments.verb](arguments, overrides)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def _from_torch(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    _prepare()
    from noisytwins_jax.config.flags import load_config
    from noisytwins_jax.interop.importing import import_run
    from noisytwins_jax.interop.public_checkpoint import read_public_checkpoint

    config = (
        None if arguments.config is None else load_config([f"--config={arguments.config}", *overrides], from_data=True)
    )
    public = read_public_checkpoint(arguments.files)
    for part, network in public.networks.items():
        about = f"{network.fields['network']}, {network.fields['data.resolution']} px, {network.num_classes} classes"
        count = _count_parameters(network.variables["params"])
        print(f"{part} ({public.naming}): {about}, {count:,} parameters", flush=True)
    workdir = import_run(public, arguments.workdir, config)
    print(f"Written: {workdir}\nSamples: python -m noisytwins_jax.main --mode=sample --workdir={arguments.workdir}")
    return 0


def _to_torch(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    _check_out(arguments.out, directory=True)
    _prepare()
    from noisytwins_jax.generation.trained_generator import load
    from noisytwins_jax.interop.exporting import export_run
    from noisytwins_jax.training.restore import restore_state
    from noisytwins_jax.utils.files import handle_disk_full

    trained = load(arguments.workdir, arguments.checkpoint)
    _, state = restore_state(trained.config, arguments.workdir.absolute(), trained.step, trained.model)
    with handle_disk_full(arguments.out):
        written = export_run(state, trained, arguments.out, arguments.format, arguments.safetensors)
    for path in written:
        print(f"Written: {path}")
    return 0


def _to_jax(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    _check_out(arguments.out, directory=False)
    _prepare()
    from noisytwins_jax.generation.export import save_sampler
    from noisytwins_jax.generation.trained_generator import load
    from noisytwins_jax.utils.files import handle_disk_full

    trained = load(arguments.workdir, arguments.checkpoint)
    with handle_disk_full(arguments.out):
        path = save_sampler(trained, arguments.out, arguments.truncation or None, arguments.platforms.split(","))
    print(f"Written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _to_onnx(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    _check_out(arguments.out, directory=False)
    _prepare()
    from noisytwins_jax.generation.trained_generator import load
    from noisytwins_jax.interop.onnx.export import check_installed, save_onnx
    from noisytwins_jax.utils.files import handle_disk_full

    check_installed()
    trained = load(arguments.workdir, arguments.checkpoint)
    with handle_disk_full(arguments.out):
        difference = save_onnx(trained, arguments.out, arguments.truncation or None, arguments.noise)
    print(f"Written: {arguments.out} ({arguments.out.stat().st_size / 1e6:.1f} MB)")
    if difference is None:
        print("Not checked, as onnxruntime is not installed: python -m pip install onnxruntime")
    else:
        print(f"Images of onnxruntime and of JAX differ by at most {difference:.1e} in [-1, 1].")
    return 0


def _check_out(out: Path, directory: bool) -> None:
    """Check that --out can be written, before anything is computed.

    Raises:
      UserError: it cannot be written.
    """
    if out.exists() and out.is_dir() != directory:
        actual, expected = ("file", "directory") if directory else ("directory", "file")
        raise UserError(f"--out={out} is a {actual}; give a {expected}.")
    existing = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    if not os.access(existing, os.W_OK) or (existing != out.absolute() and not existing.is_dir()):
        raise UserError(f"--out={out} cannot be written, because of {existing}; give another.")


def _count_parameters(params: Any) -> int:
    import jax

    return sum(x.size for x in jax.tree.leaves(params))


def _prepare() -> None:
    from noisytwins_jax.utils.logging import quiet_libraries
    from noisytwins_jax.utils.platform import expect_no_tpu, has_tpu

    quiet_libraries()
    if not has_tpu():
        expect_no_tpu()


if __name__ == "__main__":
    sys.exit(main())
