"""The documentation: links and paths exist, commands parse, and Python blocks compile."""

import argparse
import ast
import copy
import functools
import importlib
import os
import pkgutil
import re
import shlex
import textwrap
import tomllib
from pathlib import Path

import pytest
from absl import flags
from launch_tools import dry
from paths import ROOT

from noisytwins_jax.config import RunConfig, flatten
from noisytwins_jax.config.flags import load_config

PACKAGE = ROOT / "noisytwins_jax"
SOURCE = (".py", ".sh", ".md", ".ipynb", ".toml", ".yml", ".cff")
# The example of "Add your own loss", which test_add_your_own.py carries out.
DRIFT, DRIFT_FIELD = "noisytwins_jax/losses/drift.py", "config.drift.weight"
COMMANDS = [
    f"noisytwins_jax.{name}" for name in ("main", "convert", "sweep", "compare", "data.prepare", "metrics.weights")
]
TOOLS = {"pre-commit", "ruff", "wandb"}  # not ours, so not checked


def find_documents() -> list[Path]:
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name for name in folders if name == ".github" or not (name[0] == "." or name in ("build", "runs"))
        ]
        found += [Path(folder, name).relative_to(ROOT) for name in names if name in ("README.md", "CONTRIBUTING.md")]
    return sorted(found)


every_document = pytest.mark.parametrize("document", find_documents(), ids=str)


@functools.cache
def read(document: Path) -> str:
    return (ROOT / document).read_text("utf-8")


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", read(document), re.DOTALL | re.MULTILINE)


def prose(document: Path) -> str:
    """The text without its code blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", read(document), flags=re.DOTALL | re.MULTILINE)


def code_spans(document: Path) -> list[str]:
    without_links = re.sub(r"\[[^\]]*\]\([^)]*\)", "", prose(document))
    return re.findall(r"`([^`]+)`", without_links)


def commands(document: Path) -> list[list[str]]:
    """Commands of the sh blocks, and those in the text that can be told from other code, as words."""
    text = "\n".join(blocks(document, "sh")).replace("\\\n", " ")
    lines = [part for line in text.splitlines() for part in line.split(" && ")]
    lines += [span for span in code_spans(document) if re.match(r"(\w+=\S+ )?make |python -m noisytwins_jax\S+ ", span)]
    split = [shlex.split(line, comments=True) for line in lines]
    return [[*words] for words in split if words]


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# --- links and names -------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(read(Path("README.md")).splitlines()) <= 200


@every_document
def test_links_exist(document):
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        path, _, anchor = target.partition("#")
        if re.match(r"https?:|mailto:", target):
            continue
        file = (ROOT / document.parent / path).resolve() if path else ROOT / document
        if not file.exists() or (anchor and anchor not in anchors(file.relative_to(ROOT))):
            missing.append(target)
    assert not missing


@every_document
def test_paths_exist(document):
    """A code span names a path if it begins with an entry of the tree, or ends like a source file."""
    places = (ROOT, ROOT / document.parent, PACKAGE)
    missing = []
    for span in code_spans(document):
        path = span.split()[0].split("::")[0]
        if not re.fullmatch(r"\.?[\w-][\w./-]*", path) or path == DRIFT:
            continue
        begins = "/" in path and any((place / path.split("/")[0]).is_dir() for place in places)
        named = (begins or path.endswith(SOURCE)) and not path.startswith(("data/", "runs/"))
        if named and not any((place / path).exists() for place in places):
            missing.append(path)
    assert not missing


@every_document
def test_names_of_the_package_exist(document):
    missing = []
    for name in set(re.findall(r"\bnoisytwins_jax(?:\.\w+)+", read(document))):
        try:
            pkgutil.resolve_name(name.removesuffix(".py"))
        except (ImportError, AttributeError):
            missing.append(name)
    assert not [name for name in missing if not name.startswith("noisytwins_jax.losses.drift")]


@every_document
def test_fields_of_the_configuration_exist(document):
    fields = {*flatten(RunConfig()), DRIFT_FIELD.removeprefix("config."), "json"}
    groups = {field.rpartition(".")[0] for field in fields}
    named = re.findall(r"(?<![\w/])config\.([a-z_]\w*(?:\.[a-z_]\w*)*)", read(document))
    assert {name for name in named if name not in fields | groups and not name.startswith("data.options")} == set()


# --- commands --------------------------------------------------------------------------------------------------------


@every_document
def test_commands_parse(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(document):
        check_command(command)


def check_command(command: list[str]) -> None:
    """Raises, or fails, unless a command would begin to work."""
    words = list(command)
    while re.match(r"\w+=", words[0]):
        words = words[1:]
    tool, *arguments = words
    if Path(tool).name == "python" and arguments[:2] == ["-m", "pytest"]:
        assert all(Path(word).exists() for word in arguments[2:] if word.startswith("tests"))
    elif Path(tool).name == "python" and arguments[:2] == ["-m", "pip"]:
        check_pip(arguments[2:])
    elif Path(tool).name == "python" and arguments[0] == "-m":
        assert arguments[1].startswith("noisytwins_jax.") or arguments[1] == "build", command
        if arguments[1] != "build":
            check_module(arguments[1], arguments[2:])
    elif tool == "python":
        script, *options = arguments  # of the tests; some options are those of modules beside it
        source = "".join(path.read_text() for path in (Path(script), *Path(script).parent.glob("*.py")))
        assert all(f'"{word.split("=")[0]}"' in source for word in options if word.startswith("--")), command
    elif tool == "pip":
        check_pip(arguments)
    elif tool == "make":
        assert set(arguments) <= make_targets(), command
    elif tool.startswith("launch/"):
        assert dry(Path(tool).name, *arguments)
        if "--" in arguments:
            check_main(arguments[arguments.index("--") + 1 :])
    else:
        assert Path(tool).name in TOOLS, command


def check_module(name: str, arguments: list[str]) -> None:
    if name == "noisytwins_jax.main":
        check_main(arguments)
    elif name == "noisytwins_jax.app":
        importlib.import_module(f"{name}.command").build_parser().parse_args(arguments)
    elif name == "noisytwins_jax.data.prepare":
        importlib.import_module(f"{name}.command").parse_arguments(arguments)
    else:
        module = importlib.import_module(name)
        parsed, rest = module.build_parser().parse_known_args(arguments)
        if name == "noisytwins_jax.sweep":
            assert module.plan(parsed.config, parsed.methods, parsed.seeds, parsed.grid, rest, parsed.out)
        elif name == "noisytwins_jax.convert" and getattr(parsed, "config", None):
            load_config([f"--config={parsed.config}", *rest])
        else:
            assert not rest


def check_main(arguments: list[str]) -> None:
    """Parses the configuration with its overrides, and the flags beside it in a registry of their own."""
    module = importlib.import_module("noisytwins_jax.main")
    values = flags.FlagValues()
    for flag in flags.FLAGS.get_flags_for_module(module.__name__):
        if flag.name != "config":
            values[flag.name] = copy.deepcopy(flag)
    configuration = [word for word in arguments if re.match(r"--config[.=]", word)]
    if configuration:
        load_config([word for word in configuration if DRIFT_FIELD not in word])
    assert values(["main", *(word for word in arguments if word not in configuration)]) == ["main"]


def check_pip(arguments: list[str]) -> None:
    extras = re.findall(r"\.\[(\w+)\]", " ".join(arguments))
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert set(extras) <= set(tomllib.load(file)["project"]["optional-dependencies"])


@functools.cache
def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    return set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())


# --- options ---------------------------------------------------------------------------------------------------------


def options(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of its subcommands."""
    found = set()
    for action in parser._actions:
        found |= {word for word in action.option_strings if word.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            found |= set().union(*map(options, action.choices.values()))
    return found


def options_of(command: str, capsys: pytest.CaptureFixture) -> set[str]:
    if command == "noisytwins_jax.main":
        importlib.import_module(command)
        return {f"--{flag.name}" for flag in flags.FLAGS.get_flags_for_module(command)}
    if command == "noisytwins_jax.data.prepare":
        with pytest.raises(SystemExit):
            importlib.import_module(f"{command}.command").parse_arguments(["--help"])
        return set(re.findall(r"^ +(?:-\w, )?(--\w+)", capsys.readouterr().out, re.MULTILINE))
    return options(importlib.import_module(command).build_parser())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(command, capsys):
    """In a document that names the command."""
    text = "\n".join(read(document) for document in find_documents() if command in read(document))
    found = options_of(command, capsys) - {"--help"}
    assert found
    assert sorted(option for option in found if not re.search(rf"{option}(?![\w-])", text)) == []


# --- Python ----------------------------------------------------------------------------------------------------------


@every_document
def test_python_blocks_compile(document):
    for block in blocks(document, "python"):
        tree = ast.parse(textwrap.dedent(block))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and node.module != DRIFT.removesuffix(".py").replace("/", "."):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
