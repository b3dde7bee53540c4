"""Configurations on the command line: error messages, and loading from a list of options."""

import re
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from noisytwins_jax.config.parsing import flatten, parse_config
from noisytwins_jax.config.recipe import follow_recipe
from noisytwins_jax.config.run_config import RunConfig
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.utils.errors import UserError, did_you_mean

NO_CONFIG = "There is no configuration; give --config=configs/<dataset>.py[:<method>] before its fields."


def explain(error: Exception, argv: list[str]) -> str:
    """Return an error message for the user; raise `error` again if it is a bug in a config file."""
    origin: BaseException = error
    while (inner := origin.__cause__ or origin.__context__) is not None:
        origin = inner
    if isinstance(origin, UserError):  # raised by the config file, and wrapped in other exceptions
        return str(origin)
    if isinstance(error, OSError):
        reason = str(error).rpartition("failure to load: ")[2].splitlines()[-1].strip().rstrip(".")
        return (
            f"The configuration file cannot be read ({reason}); give --config=configs/<dataset>.py[:<method>]. The files are "
            "in the project's repository, in configs/; an installed package does not have them."
        )
    overrides = [match[1] for argument in argv if (match := re.match(r"--?config\.([\w.]+)", argument))]
    if overrides and not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        return NO_CONFIG
    fields = flatten(RunConfig())
    for name in overrides:
        if name not in fields and not name.startswith("data.options."):
            return f"There is no field config.{name}; {did_you_mean(f'config.{name}', (f'config.{f}' for f in fields))}"
    if isinstance(error, flags.Error):
        return str(error)
    for name in overrides:
        if name not in fields:  # an option of the data set
            return f"The configuration file does not set config.{name}; set it there first."
    raise error


def load_config(options: Sequence[str], from_data: bool = False) -> RunConfig:
    """Load the configuration that `noisytwins_jax.main` takes from these options.

    Args:
      options: of the command.
      from_data: also follow the recipe of ``config.auto``, as training does, but for the device's memory. It needs the data.

    Raises:
      UserError: as in `main`.
    """
    argv = ["sweep", *options]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
        config.value.lock()  # a file that could not be loaded is only reported when it is used
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        raise UserError(explain(error, argv)) from None
    if len(rest) > 1:
        raise UserError(f"Unexpected argument {rest[1]!r}; fields are set with --config.FIELD=VALUE.")
    run = parse_config(config.value)
    if run.auto and from_data:
        given = config_flags.get_override_values(values["config"])
        run, _ = follow_recipe(run, load_data(run.data).train.class_counts, given)
    return run
