"""``--mode=evaluate``: the numbers and the report of a trained run.

In a run of several processes all of them call these functions: they share the generating and embedding of images, and
the first one computes the numbers and writes the files.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from noisytwins_jax.checkpoint import Checkpoints
from noisytwins_jax.config import RunConfig, flatten
from noisytwins_jax.data.long_tail import class_groups
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.data.source import DataSplits, ImageSource, read_images
from noisytwins_jax.diagnostics.curves import training_curves
from noisytwins_jax.diagnostics.factor_figure import factor_figure
from noisytwins_jax.diagnostics.latent_sheets import Band, interpolation_sheet, truncation_sheet
from noisytwins_jax.diagnostics.neighbour_sheet import neighbour_sheet
from noisytwins_jax.diagnostics.report import write_report
from noisytwins_jax.diagnostics.sheets import head_to_tail, sample_sheet
from noisytwins_jax.diagnostics.spectra_figure import spectra_figure
from noisytwins_jax.diagnostics.w_projection import w_projection_figure
from noisytwins_jax.errors import UserError
from noisytwins_jax.instances import with_instances
from noisytwins_jax.latents import SYMBOLS, Truncation, check_truncation
from noisytwins_jax.logs import read_metrics
from noisytwins_jax.metrics.classifier import classifier_extractor, load_or_train_classifier
from noisytwins_jax.metrics.evaluation import evaluate_generator
from noisytwins_jax.metrics.evaluation_protocol import check_request
from noisytwins_jax.metrics.extractor import FeatureExtractor
from noisytwins_jax.metrics.extractors import check_weights, load_extractor
from noisytwins_jax.metrics.factor_reader import FactorReader, load_or_train_weights
from noisytwins_jax.metrics.parts import Scratch
from noisytwins_jax.metrics.protocols import CLASSIFIER, chosen_extractors
from noisytwins_jax.metrics.settings import Settings
from noisytwins_jax.metrics.table import format_table
from noisytwins_jax.sampling import Sampler, standing_statistics, variables_sha256
from noisytwins_jax.sharding import Layout
from noisytwins_jax.survival.agreement import check_agreement, code_fingerprint, failing_together
from noisytwins_jax.survival.collapse_log import read_collapses
from noisytwins_jax.together import local_copy, on_first_process, say, shared_rows
from noisytwins_jax.training.networks import build_model
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.workdir import cache_dir, needing_space, open_workdir, write_atomically

EVALUATION_FILE, REPORT_FILE, SHEET_FILE, W_FILE = "evaluation.json", "report.html", "samples.png", "w.npz"
NEAREST_FILE = "nearest.png"
NEAREST_CAPTION = (
    "Nearest training images. Left: generated, none selected; right of each, the training images that are nearest, with "
    "their distances."
)
SPECTRA_CAPTION = (
    "Singular values of every weight. The largest, and how far it is above the second (BigGAN, Fig. 3); a sudden growth in "
    "the generator foretells collapse."
)
INTERPOLATIONS_FILE, TRUNCATION_FILE = "interpolations.png", "truncation.png"
INTERPOLATIONS_CAPTION = (
    "Interpolations. Straight ways between two z, between two classes (their embeddings, or w), and both at once (BigGAN, "
    "Fig. 8 and 9); none is selected. Row for row, the three kinds begin with the same image. Sudden jumps on the way are a "
    "sign of memorised images."
)
TRUNCATION_CAPTION = (
    "Truncation. The same z in every row, truncated more and more (BigGAN, Fig. 2); none is selected. Quality should rise "
    "while variety goes; saturated images say that the generator does not bear it."
)
W_CAPTION = "Latent space W. Each dot is the w of one (z, class); a collapsed class is a point or a thin line."
SCRATCH = ".evaluation"  # in the workdir, while an evaluation is under way
SHEET_CLASSES, SHEET_REAL, SHEET_FAKE = 30, 8, 16  # rows of the sample sheet, and images a row
BAND_ROWS, STEPS = 4, 10  # of the interpolation sheet: rows of each kind, and images a row with both ends
CUT_CLASSES, CUT_IMAGES = 5, 3  # of the truncation sheet: classes side by side, and images of each in a row
CUTS = {  # its strengths below no truncation, unless the configuration has some; thresholds are those of BigGAN's Fig. 2
    "psi": (0.7, 0.4, 0.1),
    "threshold": (2.0, 1.0, 0.5, 0.04),
    "scaled": (1.0, 0.5, 0.1),
    "std": (0.7, 0.4, 0.1),
}


def evaluate(config: RunConfig, workdir: str | Path, which: str = "latest") -> Path:
    """Evaluates a checkpoint; writes ``evaluation.json``, ``report.html``, ``w.npz`` and sheets of images.

    The sheets are ``samples.png``, ``nearest.png``, ``interpolations.png`` and ``truncation.png``.

    Args:
      config: the configuration the run was trained with.
      workdir: the run.
      which: ``"latest"``, ``"best"`` or a step.

    Returns:
      The report's path.

    Raises:
      UserError: there is no such checkpoint, or it does not fit the configuration.
    """
    check_evaluation(config)
    with needing_space(Path(workdir)):
        splits, workdir, step, variables = restore_generator(config, workdir, which)
        with failing_together():
            check_counts(config, splits)
        say(f"Evaluating the averaged generator of step {step}.")
        return write_results(config, variables, step, splits, workdir)


def load_together(config: RunConfig, arguments: Mapping[str, Any] | None = None) -> DataSplits:
    """The images of a run, when all of its processes have them and agree on everything that they must.

    Raises:
      UserError: in all processes: the images cannot be had, or the processes differ in configuration, `arguments`, code,
        version of JAX or images.
    """
    with failing_together():
        splits = load_data(config.data)
    facts = {f"config.{name}": repr(value) for name, value in flatten(config).items()}
    facts |= {f"--{name}": repr(value) for name, value in (arguments or {}).items()}
    facts |= {"the code of noisytwins_jax": code_fingerprint(), "the version of JAX": jax.__version__}
    check_agreement(facts | {"the training images": splits.train.fingerprint})
    return splits


def restore_generator(
    config: RunConfig, workdir: str | Path, which: str = "latest", **arguments: Any
) -> tuple[DataSplits, Path, int, dict[str, Any]]:
    """The data, the opened workdir, and step and variables of a checkpoint's averaged generator.

    Processes that differ in `arguments` are refused, as those that differ in the configuration are.

    Raises:
      UserError: as `evaluate`.
    """
    if which not in ("latest", "best") and not str(which).isdigit():
        raise UserError(f"--checkpoint={which} is no checkpoint; give latest, best or a step, for example 1000.")
    if not Path(workdir, "checkpoints").is_dir():
        raise UserError(
            f"{Path(workdir).absolute()} holds no checkpoints; train first (--mode=train), or give --workdir."
        )
    splits = load_together(config, arguments)
    with failing_together():
        workdir = open_workdir(workdir, config)
    layout = Layout(fsdp=jax.device_count())  # spread as thin as can be, whatever it was trained on
    step = TrainingStep(config, build_model(config, splits.train.channels, splits.train.num_classes))
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(step.abstract_state(layout.state_shardings), which)
    if restored is None:
        raise UserError(f"There is no whole checkpoint in {workdir}; train first (--mode=train).")
    return with_instances(config, splits, cache_dir(workdir)), workdir, restored.step, restored.state.ema


def build_sampler(
    config: RunConfig,
    variables: dict,
    splits: DataSplits,
    truncation: Truncation | None = None,
    **options: Any,
) -> Sampler:
    """A sampler of a run's generator; `options` go to `Sampler`. To be called by all processes."""
    model = build_model(config, splits.train.channels, splits.train.num_classes)
    counts = config.evaluation.standing_passes, config.evaluation.standing_batch
    variables = standing_statistics(model, config.z, local_copy(variables), truncation, *counts, splits.instances)
    return Sampler(model, config.z, variables, truncation=truncation, instances=splits.instances, **options)


def check_evaluation(config: RunConfig, on_its_data: bool = True) -> None:
    """Looks whether what the evaluation needs is there, so that it is not missed at the end of a long run.

    Args:
      config: the run.
      on_its_data: whether it is measured on the configuration's data, of which there could be a classifier.

    Raises:
      UserError: weights are missing; how to make them is said.
    """
    with failing_together():
        try:
            check_weights(_chosen(config), config.evaluation.weights)
        except UserError as error:
            without = "--config.evaluation.protocol=embedded --config.evaluation.extractors="
            raise UserError(f"{error} (or measure without them: {without})" if on_its_data else str(error)) from None


def check_counts(config: RunConfig, splits: DataSplits) -> None:
    """Looks whether there are enough images for the metrics, likewise.

    Raises:
      UserError: there are too few, generated or real ones.
    """
    settings = settings_of(config, splits)
    counts = settings.counts(splits.reference.num_classes)
    check_request(splits.reference, {}, settings, counts, sweep=bool(config.evaluation.sweep))


def evaluate_variables(
    config: RunConfig,
    variables: dict,
    splits: DataSplits,
    workdir: Path,
    thorough: bool = True,
    between: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """The numbers of a generator with these variables, on every process; see `metrics.evaluation`.

    Killed, it goes on where it was when it is called with the same arguments.

    Args:
      config: the run.
      variables: of the generator.
      splits: the run's data.
      workdir: the run's.
      thorough: also memorisation and the sweep over truncation, if the configuration asks for them.
      between: called by all processes now and then while images are generated, when what is done is kept; it may raise.
    """
    options, cache, settings = config.evaluation, cache_dir(workdir), settings_of(config, splits)
    variables = local_copy(variables)
    sampler = functools.partial(
        build_sampler, config, variables, splits, seed=options.seed, rows=settings.rows, ahead=settings.ahead
    )
    reader = None
    if splits.classifier.factor_names:
        weights = on_first_process(lambda: load_or_train_weights(splits.classifier, cache, options.seed))
        reader = FactorReader(*weights, splits.reference)
    result = evaluate_generator(
        sampler(),
        reference=splits.reference,
        extractors=load_extractors(config, splits, cache),
        class_groups=class_groups(splits.train.class_counts, config.data.group_thresholds),
        settings=settings,
        train=splits.train if options.memorisation and thorough else None,
        train_counts=splits.train.class_counts,
        truncated={
            strength: functools.partial(sampler, truncation=Truncation(config.truncation_kind, strength))
            for strength in options.sweep
            if thorough
        },
        truncation_kind=config.truncation_kind,
        reader=reader,
        cache=cache,
        scratch=Scratch(workdir / SCRATCH),
        identity=f"{variables_sha256(variables)} {config.network} {config.generator} {config.biggan} {config.latents} "
        f"{options.standing_passes} {options.standing_batch} {config.up_impl} {config.dtype}"
        + (f" {config.instances} {variables_sha256(splits.instances)}" if splits.instances else ""),
        between=between,
    )
    return result if config.has_mapping_network else _without_w(result)


def _without_w(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers without those of W."""
    metrics = {name: value for name, value in result["metrics"].items() if not name.endswith("w_ratio")}
    return result | {"metrics": metrics, "per_class": [row | {"w_ratio": None} for row in result["per_class"]]}


def settings_of(config: RunConfig, splits: DataSplits | None = None, **others: Any) -> Settings:
    """How to measure, with as many images at once as suit the devices unless the configuration says.

    Args:
      config: the run.
      splits: what is measured against; None where it is not the run's data.
      others: further fields of `Settings`.
    """
    options = config.evaluation
    # CPUs are fastest at Inception and CLIP a few images at a time; tiny networks want more.
    rows = 8 if jax.default_backend() == "cpu" and options.protocol != "embedded" else 64
    ahead = max(1, options.batch_size // (rows * jax.local_device_count())) if options.batch_size else 2
    if splits is not None:
        others["reference_split"] = "train" if splits.reference is splits.train else "reference"
    return dataclasses.replace(options.settings, rows=rows, ahead=ahead, **others)


def load_extractors(config: RunConfig, splits: DataSplits, cache: Path) -> dict[str, FeatureExtractor]:
    """The extractors of a configuration by kind, the headline's first. To be called by all processes."""
    options, extractors = config.evaluation, {}
    for kind, network in _chosen(config).items():
        if kind == CLASSIFIER:

            def train() -> tuple[Any, dict[str, Any]]:
                classifier = load_or_train_classifier(splits.classifier, cache)
                return classifier.variables, classifier.description

            extractors[kind] = classifier_extractor(*on_first_process(train))
        else:
            with failing_together():
                extractors[kind] = load_extractor(kind, network, options.protocol, options.weights)
    return extractors


def _chosen(config: RunConfig) -> dict[str, str]:
    return chosen_extractors(config.evaluation.settings.protocol, config.evaluation.extractors)


def write_results(
    config: RunConfig,
    variables: dict,
    step: int,
    splits: DataSplits,
    workdir: Path,
    result: dict[str, Any] | None = None,
) -> Path:
    """Evaluates, unless the `result` is known, and writes all that people look at; returns the report's path."""
    variables = local_copy(variables)
    result = result or evaluate_variables(config, variables, splits, workdir)
    result["protocol"]["step"] = step
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    on_first_process(lambda: write_atomically(workdir / EVALUATION_FILE, text))
    Scratch(workdir / SCRATCH).remove_finished()
    say(format_table({config.name: result}))
    sheet = make_sheet(config, variables, splits, workdir / SHEET_FILE)
    nearest = make_nearest_sheet(config, variables, splits, result, workdir / NEAREST_FILE)
    latent = make_latent_sheets(config, variables, splits, workdir)
    w, labels = sample_w(config, variables, splits)
    return on_first_process(
        lambda: _write_report(config, step, splits, workdir, result, sheet, nearest, latent, w, labels)
    )


def _write_report(
    config: RunConfig,
    step: int,
    splits: DataSplits,
    workdir: Path,
    result: dict[str, Any],
    sheet: Image.Image,
    nearest: Image.Image | None,
    latent: tuple[Image.Image, Image.Image],
    w: np.ndarray,
    labels: np.ndarray,
) -> Path:
    np.savez(workdir / W_FILE, w=w, labels=labels)
    names, counts = splits.train.class_names, splits.train.class_counts
    with_w = config.has_mapping_network
    kimg, records = step * config.images_per_step / 1000, read_metrics(workdir)
    return write_report(
        workdir / REPORT_FILE,
        title=config.name,
        lede=f"{len(splits.train)} training images of {len(counts)} classes, {counts.max()} to {counts.min()} a class; "
        f"{kimg:g} kimg; averaged generator of step {step}.",
        config_text=json.dumps(flatten(config), indent=2),
        evaluation=result,
        figures=[
            ("Samples. Every row is a class, from the most to the least frequent; none is selected.", sheet),
            *([(W_CAPTION, w_projection_figure(w, labels, names, class_counts=counts))] if with_w else []),
            *zip((INTERPOLATIONS_CAPTION, TRUNCATION_CAPTION), latent, strict=True),
            *([(NEAREST_CAPTION, nearest)] if nearest else []),
            *_known_factors(result),
            ("Training. Means over each logging interval.", training_curves(records)),
            *_spectra(records, workdir),
        ],
    )


def _spectra(records: list[dict[str, Any]], workdir: Path) -> list[tuple[str, Any]]:
    """Singular values over training, with what collapsed; for each return the numbers of what was given up."""
    collapses = read_collapses(workdir)
    reported = [record for record in collapses if not record["returned"]]
    signs = "".join(f" Collapse: {record['sign']}." for record in reported)
    marks = {record["kept"]: "went back here" for record in collapses if record["returned"]}
    marks |= {record["step"]: "collapse" for record in reported}
    found = [(SPECTRA_CAPTION + signs, spectra_figure(records, marks=marks))]
    for record in collapses:
        if record["returned"] and (workdir / record["log"]).exists():
            caption = f"Given up: {record['sign']}. Training went on from step {record['kept']}."
            lost = read_metrics(workdir / record["log"])
            spectra = spectra_figure(lost, marks={record["step"]: "collapse", record["kept"]: "went back here"})
            found.append((caption, spectra or training_curves(lost)))
    return [(caption, figure) for caption, figure in found if figure is not None]


def _known_factors(result: dict[str, Any]) -> list[tuple[str, Any]]:
    factors = result.get("factors")
    if not factors:
        return []
    accuracy = factors["metrics"]["class_accuracy"]
    caption = (
        f"Known factors. Read off {factors['protocol']['n_fake']} generated images; {accuracy:.1%} of them show the class "
        "that was asked for. Grey: factors that the network reads badly off real images too."
    )
    return [(caption, factor_figure(factors))]


def make_nearest_sheet(
    config: RunConfig, variables: dict, splits: DataSplits, result: dict[str, Any], path: Path
) -> Image.Image | None:
    """Generated images beside the training images that are nearest to them, as `result` names them; also to `path`."""
    examples = (result.get("memorisation") or {}).get("examples")
    if not examples:
        return None
    sampler = build_sampler(config, variables, splits, seed=config.evaluation.seed)
    labels, indices = (np.array([example[key] for example in examples]) for key in ("class", "index"))
    images, _ = shared_rows(lambda rows: sampler(labels[rows], indices[rows]), len(labels))

    train = splits.train

    def near(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and distances of the neighbours."""
        rows, distances = (
            np.array([example[prefix + key] for example in examples]) for key in ("nearest", "distances")
        )
        return read_images(train, rows.ravel())["image"].reshape(*rows.shape, *images.shape[1:]), distances

    def draw() -> Image.Image:
        in_pixels = near("pixel_") if "pixel_nearest" in examples[0] else None
        return neighbour_sheet(
            images, *near(""), labels, train.class_names, train.class_counts, path, in_pixels=in_pixels
        )

    return on_first_process(draw)


def make_latent_sheets(
    config: RunConfig, variables: dict, splits: DataSplits, workdir: Path
) -> tuple[Image.Image, Image.Image]:
    """Interpolations, and rows of truncation; also ``interpolations.png`` and ``truncation.png`` in the workdir."""
    return (
        _interpolations(config, variables, splits, workdir / INTERPOLATIONS_FILE),
        _truncations(config, variables, splits, workdir / TRUNCATION_FILE),
    )


def _interpolations(config: RunConfig, variables: dict, splits: DataSplits, path: Path) -> Image.Image:
    """Row j of every kind begins with class and z number j; the other class is the next one of the sheet."""
    train = splits.train
    classes = _spread(train.class_counts, min(BAND_ROWS, train.num_classes))
    first, second, rows = (
        np.resize(classes, BAND_ROWS),
        np.resize(np.roll(classes, -1), BAND_ROWS),
        np.arange(BAND_ROWS),
    )
    z, one, both = (rows, rows + BAND_ROWS), (rows, rows), (first, second)
    kinds = {"Between two z of a class": ((first, first), z)}
    if len(classes) > 1:
        kinds |= {"Between two classes at one z": (both, one), "Between two classes and two z": (both, z)}
    labels, indices = (np.stack([np.stack(kind[i], axis=1) for kind in kinds.values()]) for i in (0, 1))
    shape = (*labels.shape[:2], STEPS)  # kinds, rows, steps
    flat_labels, flat_indices = (np.repeat(x.reshape(-1, 2), STEPS, axis=0) for x in (labels, indices))
    t = np.tile(np.linspace(0.0, 1.0, STEPS), shape[0] * shape[1])
    sampler = build_sampler(config, variables, splits, seed=config.evaluation.seed)
    (images,) = shared_rows(lambda some: (sampler.between(flat_labels[some], flat_indices[some], t[some]),), len(t))
    images = images.reshape(*shape, *images.shape[1:])
    bands = [Band(heading, *band) for heading, *band in zip(kinds, images, labels, strict=True)]
    return on_first_process(lambda: interpolation_sheet(bands, train.class_names, path))


def _truncations(config: RunConfig, variables: dict, splits: DataSplits, path: Path) -> Image.Image:
    train, cuts = splits.train, sheet_truncations(config)
    classes = _spread(train.class_counts, min(CUT_CLASSES, train.num_classes))
    labels, indices = np.repeat(classes, CUT_IMAGES), np.arange(len(classes) * CUT_IMAGES)
    rows = []
    for cut in cuts:
        sampler = build_sampler(config, variables, splits, truncation=cut, seed=config.evaluation.seed)
        rows.append(shared_rows(lambda some, sampler=sampler: sampler(labels[some], indices[some]), len(labels))[0])
    names = ["no truncation" if cut is None else f"{SYMBOLS[cut.kind]} {cut.strength:g}" for cut in cuts]
    images = {c: np.stack([row[labels == c] for row in rows]) for c in classes}
    return on_first_process(lambda: truncation_sheet(images, names, train.class_names, train.class_counts, path))


def sheet_truncations(config: RunConfig) -> list[Truncation | None]:
    """No truncation, and those of the configuration's sweep, or of `CUTS`, from the weakest to the strongest."""
    kind, has_w = config.truncation_kind, config.has_mapping_network
    try:  # only a sweep needs a kind that fits
        check_truncation(kind, CUTS[kind][0], config.latents.kind, has_w)
    except UserError:
        kind = "psi" if has_w else "std"
    strengths = sorted(config.evaluation.sweep or CUTS[kind], reverse=True)
    return [None, *(Truncation(kind, strength) for strength in strengths if (kind, strength) != ("psi", 1.0))]


def _spread(class_counts: np.ndarray, count: int) -> np.ndarray:
    """Ids of `count` classes at even distances from head to tail."""
    order = np.array(head_to_tail(class_counts))
    return order[np.linspace(0, len(order) - 1, count).round().astype(int)]


def make_sheet(config: RunConfig, variables: dict, splits: DataSplits, path: Path) -> Image.Image:
    """Training images beside generated ones, a row a class, at most 30 from head to tail; also written to `path`."""
    classes = np.sort(_spread(splits.train.class_counts, min(splits.train.num_classes, SHEET_CLASSES)))
    sampler = build_sampler(config, variables, splits, seed=config.evaluation.seed)
    labels = np.repeat(classes, SHEET_FAKE)
    images, _ = shared_rows(lambda rows: sampler(labels[rows], rows), len(labels))

    def draw() -> Image.Image:
        fake = {c: images[labels == c] for c in classes}
        real = {c: _first_of_class(splits.train, c, SHEET_REAL) for c in classes}
        return sample_sheet(real, fake, splits.train.class_names, splits.train.class_counts, path)

    return on_first_process(draw)


def sample_w(
    config: RunConfig, variables: dict, splits: DataSplits, per_class: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """W vectors ``[num_classes · per_class, w_dim]`` of the first latents of each class, and their labels."""
    labels = np.repeat(np.arange(splits.train.num_classes), per_class)
    sampler = build_sampler(config, variables, splits, seed=config.evaluation.seed)
    return shared_rows(lambda rows: sampler(labels[rows], rows)[1:], len(labels))[0], labels


def _first_of_class(source: ImageSource, label: int, count: int) -> np.ndarray:
    return read_images(source, np.flatnonzero(source.labels == label)[:count])["image"]
