"""A stand-in for the package wandb that records what it is given; `install` puts it in the place of the real one."""

import sys
from types import ModuleType, SimpleNamespace


class Run:
    """Records of one `init`: its arguments, what was logged, and the exit code once it is finished."""

    disabled = False

    def __init__(self, arguments):
        self.arguments = arguments
        self.id = arguments["id"] or "id0"
        offline = arguments["mode"] == "offline"
        self.url = None if offline else f"https://server/{self.id}"
        self.dir = f"{arguments['dir']}/wandb/{'offline-' if offline else ''}run-{self.id}/files"
        self.logged = []
        self.exit_code = None

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self, exit_code):
        self.exit_code = exit_code

    def values(self):
        """The last value of every name."""
        return {name: value for _, values in self.logged for name, value in values.items()}


def install(monkeypatch, refuse=()):
    """Returns the runs that will be started; starting one in a mode of `refuse` (None: the default one) fails."""
    runs, module = [], ModuleType("wandb")

    def init(**arguments):
        if arguments["mode"] in refuse:
            raise ConnectionError("no server\nmore")
        runs.append(Run(arguments))
        return runs[-1]

    module.init, module.setup = init, lambda settings: None
    module.Settings, module.Table, module.Image = SimpleNamespace, SimpleNamespace, lambda image: ("image", image)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs
