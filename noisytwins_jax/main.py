"""The command: ``python -m noisytwins_jax.main --config=configs/<dataset>.py[:<method>]``.

``--mode=train`` (the default), ``evaluate``, ``sample`` or ``compile`` says what to do. A run of several processes is the
same command in each of them, with ``--coordinator``.
Every field of the configuration can be overridden: ``--config.noisytwins.weight=0.01``. The fields are listed in
noisytwins_jax/config/run_config.py and config_groups.py (those of an evaluation in its EvaluationConfig).
"""

import os
import sys
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from noisytwins_jax.config import RunConfig, flatten, parse_config
from noisytwins_jax.config.flags import NO_CONFIG, explain
from noisytwins_jax.utils.errors import TryAgainError, UserError, first_line
from noisytwins_jax.utils.logging import quiet_libraries
from noisytwins_jax.utils.platform import expect_no_tpu, has_tpu

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, with :<method> where it has several.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "sample", "compile"], "What to do.")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the run, or of the evaluation of --images; by default runs/<dataset>-<method>, or runs/images-<name> of "
    "the folder or file.",
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "evaluate, sample: latest, best or a step.")
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "evaluate: images of any program instead of a run's own. A folder of images, or with a folder of images for each class "
    "(called as in the data set, or by class id); or an .npz with uint8 arrays images [n, H, W, C], labels [n] (class ids) "
    "and class_names, or arr_0 and arr_1, or x [n, C, H, W] and y. How to measure: --config.evaluation.*, see "
    "EvaluationConfig in noisytwins_jax/config/groups.py.",
)
_REFERENCE = flags.DEFINE_string(
    "reference",
    None,
    "evaluate: what --images are compared with, instead of the data set: a folder or .npz as for --images. It takes another "
    "protocol than embedded: --config.evaluation.protocol=tf1.",
)
_CLASSES = flags.DEFINE_list("classes", None, "sample: class ids; all by default.")
_SAMPLES = flags.DEFINE_integer("samples_per_class", 16, "sample: images of each class.")
_TRUNCATION = flags.DEFINE_string(
    "truncation",
    "",
    "sample: 0.7, or with its kind psi:0.7 (in W, StyleGAN2), threshold:0.5 (z drawn again until |z| is below it), "
    "scaled:0.5 (as the published BigGAN modules) or std:0.5.",
)
_PSI = flags.DEFINE_float("psi", None, "sample: short for --truncation=psi:…; 1 for none.")
_SEED = flags.DEFINE_integer("seed", 0, "sample: seed of the latents.")
_FORMAT = flags.DEFINE_list(
    "format", ["grid", "npz"], "sample: what is written: grid, npz (arrays), files (a PNG an image)."
)
_NOISE_MODE = flags.DEFINE_enum(
    "noise_mode",
    None,
    ["random", "const", "none"],
    "sample: StyleGAN2's per-pixel noise; by default the configuration's.",
)
_FRAMES = flags.DEFINE_integer("frames", 0, "sample: an animation, with so many frames from each image to the next.")
_MIX_LAYERS = flags.DEFINE_string(
    "mix_layers", "", "sample: a picture of mixed styles: each image with these layers of each other one, as 4-7."
)

_TOPOLOGY = flags.DEFINE_string("topology", "v3:2x2", "compile: TPU cores that need not exist, as v4:2x2x1 or v5e:2x2.")
_PROGRAMS = flags.DEFINE_list("programs", None, "compile: some of the run's programs; all by default.")
_COMPARE = flags.DEFINE_string("compare", None, "compile: file whose last line is an earlier result, to compare with.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Several processes: host:port of the first, or auto on Cloud TPU, GKE and SLURM."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several processes: how many, unless --coordinator=auto.")
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Several processes: this one, from 0, unless --coordinator=auto."
)

_OF_SAMPLE = (
    "classes",
    "samples_per_class",
    "truncation",
    "psi",
    "seed",
    "format",
    "noise_mode",
    "frames",
    "mix_layers",
)
# Flags that the other modes would ignore.
_ONLY = dict.fromkeys(_OF_SAMPLE, ("sample",))
_ONLY |= dict.fromkeys(("topology", "programs", "compare"), ("compile",))
_ONLY |= dict.fromkeys(("coordinator", "num_processes", "process_id"), ("train", "evaluate", "sample"))
_ONLY |= {"checkpoint": ("evaluate", "sample"), "images": ("evaluate",), "reference": ("evaluate",)}


def main(argv: list[str]) -> None:
    """Runs the mode asked for."""
    quiet_libraries()
    try:
        if len(argv) > 1:
            raise UserError(f"Unexpected argument {argv[1]!r}; options start with --.")
        if _CONFIG.value is None and not (_MODE.value == "sample" and _WORKDIR.value):
            raise UserError(NO_CONFIG)
        _check_mode(_MODE.value)
        config = None if _CONFIG.value is None else parse_config(_CONFIG.value)
        workdir = _WORKDIR.value or _default_workdir(config)
        # JAX is imported here, so that a mistyped flag or field is answered at once.
        if _MODE.value == "compile":
            from noisytwins_jax.tpu_cost.compile import compile_run

            compile_run(config, _TOPOLOGY.value, _PROGRAMS.value, _COMPARE.value)
            return
        if (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value) != (None, None, None):
            from noisytwins_jax.utils.sharding import join_processes

            join_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        elif _MODE.value == "evaluate":
            from noisytwins_jax.utils.sharding import use_all_cores

            use_all_cores()
        _run(config, workdir)
    except TryAgainError as error:
        _fail(str(error), os.EX_TEMPFAIL)
    except UserError as error:
        _fail(str(error))


def _run(config: RunConfig | None, workdir: str) -> None:
    import jax

    from noisytwins_jax.utils.multihost import print_on_primary

    if not has_tpu():
        expect_no_tpu()
    try:
        if _MODE.value == "train":
            from noisytwins_jax.train import train

            print_on_primary(f"Report: {train(config, workdir)}")
        elif _IMAGES.value is not None:
            from noisytwins_jax.evaluation.evaluate_images import evaluate_images

            print_on_primary(f"Report: {evaluate_images(config, _IMAGES.value, _REFERENCE.value, workdir)}")
        elif _MODE.value == "evaluate":
            from noisytwins_jax.evaluation.evaluate import evaluate

            print_on_primary(f"Report: {evaluate(config, workdir, _CHECKPOINT.value)}")
        else:
            from noisytwins_jax.generation.sample import sample

            classes = None if _CLASSES.value is None else [_class_id(c) for c in _CLASSES.value]
            truncation = _TRUNCATION.value if _PSI.value is None else f"psi:{_PSI.value}"
            written = sample(
                config,
                workdir,
                _CHECKPOINT.value,
                classes,
                _SAMPLES.value,
                truncation,
                _SEED.value,
                _NOISE_MODE.value,
                _FORMAT.value,
                _FRAMES.value,
                _MIX_LAYERS.value,
            )
            print_on_primary(f"Samples: {written}")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(
                f"The devices have too little memory for this run ({first_line(error)}); lower "
                "--config.batch_size, take more devices, or share the state among some: --config.mesh.fsdp."
            ) from None
        if jax.process_count() == 1:
            raise
        reason = first_line(error)
        _fail(f"The processes of the run lost each other ({reason}); start all of them again.", os.EX_TEMPFAIL)


def _check_mode(mode: str) -> None:
    for name, modes in _ONLY.items():
        if flags.FLAGS[name].present and mode not in modes:
            field = f"; the run's own is --config.{name}" if name in flatten(RunConfig()) else ""
            raise UserError(f"--{name} is for --mode={' or '.join(modes)}, not for {mode}{field}.")
    if _PSI.value is not None and _TRUNCATION.value:
        raise UserError("--psi and --truncation both truncate; give one of them.")
    if _IMAGES.value is None and _REFERENCE.value is not None:
        raise UserError("--reference is what files are compared with; give them too: --images=<folder or .npz>.")
    if "" in (_IMAGES.value, _REFERENCE.value):
        raise UserError("--images and --reference each take a folder or an .npz file; one of them is empty.")
    if _IMAGES.value is not None and flags.FLAGS["checkpoint"].present:
        raise UserError("--checkpoint names a trained generator, but --images come from files; give one of the two.")


def _default_workdir(config: RunConfig) -> str:
    if _IMAGES.value is None:
        return f"runs/{config.name}"
    path = os.path.abspath(_IMAGES.value)
    return f"runs/images-{os.path.basename(path if os.path.isdir(path) else os.path.splitext(path)[0])}"


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with one sentence and status 2 for everything that can be wrong in a command line."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.lock()  # a file that could not be loaded is only reported when it is used
        return rest
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        _fail(explain(error, argv))


def _class_id(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--classes takes class ids, for example --classes=0,9, not {text!r}.") from None


def _fail(message: str, status: int = 2) -> NoReturn:
    """Ends with a status that ``launch/`` understands: 2 for a mistake, EX_TEMPFAIL for what is to be started again."""
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
