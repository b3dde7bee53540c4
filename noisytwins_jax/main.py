"""The command: ``python -m noisytwins_jax.main --config=configs/<dataset>.py[:<method>] [--mode=train|evaluate|sample]``.

Every field of the configuration can be overridden: ``--config.noisytwins.weight=0.01``. See `config` for the fields.
"""

import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, with :<method> where it has several.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "sample"], "What to do.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; runs/<dataset>-<method> by default.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "evaluate, sample: latest, best or a step.")
_CLASSES = flags.DEFINE_list("classes", None, "sample: class ids; all by default.")
_SAMPLES = flags.DEFINE_integer("samples_per_class", 16, "sample: images of each class.")
_PSI = flags.DEFINE_float("psi", 1.0, "sample: truncation in W; 1 for none.")
_SEED = flags.DEFINE_integer("seed", 0, "sample: seed of the latents.")


def main(argv: list[str]) -> None:
    """Runs the mode asked for."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}; options start with --.")
    absl_logging.set_verbosity(absl_logging.ERROR)  # libraries' chatter; set --verbosity to see it
    # Imported here, so that a mistyped flag is answered at once.
    from noisytwins_jax.config import parse_config
    from noisytwins_jax.errors import UserError

    try:
        config = parse_config(_CONFIG.value)
        workdir = _WORKDIR.value or f"runs/{config.name}"
        if _MODE.value == "train":
            from noisytwins_jax.train import train

            report = train(config, workdir)
            print(f"Report: {report}")
        elif _MODE.value == "evaluate":
            from noisytwins_jax.evaluate import evaluate

            report = evaluate(config, workdir, _CHECKPOINT.value)
            print(f"Report: {report}")
        else:
            from noisytwins_jax.sample import sample

            classes = None if _CLASSES.value is None else [int(c) for c in _CLASSES.value]
            picture = sample(config, workdir, _CHECKPOINT.value, classes, _SAMPLES.value, _PSI.value, _SEED.value)
            print(f"Samples: {picture}")
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
