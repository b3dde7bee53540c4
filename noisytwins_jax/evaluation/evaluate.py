"""``--mode=evaluate``: evaluation of a checkpoint, with its report."""

from pathlib import Path

from noisytwins_jax.config import RunConfig
from noisytwins_jax.evaluation.results import write_results
from noisytwins_jax.evaluation.run_evaluation import check_counts, check_evaluation
from noisytwins_jax.training.restore import restore_generator
from noisytwins_jax.utils.files import handle_disk_full
from noisytwins_jax.utils.multihost import print_on_primary, raise_on_all_processes


def evaluate(config: RunConfig, workdir: str | Path, which: str = "latest") -> Path:
    """Evaluate a checkpoint and write ``evaluation.json``, ``report.html``, ``w.npz`` and sheets of images.

    The sheets are ``samples.png``, ``nearest.png``, ``interpolations.png`` and ``truncation.png``.

    Args:
      config: the configuration of the run.
      workdir: of the run.
      which: ``"latest"``, ``"best"`` or a step.

    Returns:
      The report's path.

    Raises:
      UserError: the checkpoint does not exist or does not fit the configuration.
    """
    check_evaluation(config)
    with handle_disk_full(Path(workdir)):
        splits, workdir, step, variables = restore_generator(config, workdir, which)
        with raise_on_all_processes():
            check_counts(config, splits)
        print_on_primary(f"Evaluating the averaged generator of step {step}.")
        return write_results(config, variables, step, splits, workdir)
