import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from paths import ROOT
from PIL import Image

from noisytwins_jax import main as command
from noisytwins_jax.config import RunConfig
from noisytwins_jax.config.groups import EvaluationConfig
from noisytwins_jax.data.config import DataConfig
from noisytwins_jax.data.digits import digits_splits
from noisytwins_jax.data.long_tail import class_groups
from noisytwins_jax.evaluation import evaluate_images as module
from noisytwins_jax.evaluation import generated_features
from noisytwins_jax.evaluation import sheets as evaluation_sheets
from noisytwins_jax.evaluation.evaluate_generator import evaluate_generator
from noisytwins_jax.evaluation.evaluate_images import evaluate_images
from noisytwins_jax.evaluation.image_files import FileFakes
from noisytwins_jax.evaluation.run_evaluation import load_extractors
from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.features import HostFakes
from noisytwins_jax.utils.errors import UserError

N = 12  # images of each class
DIGITS = RunConfig(name="digits", data=DataConfig("digits_lt", 8, mirror=False))
CLEAN = dataclasses.replace(DIGITS, evaluation=EvaluationConfig(protocol="clean", neighbours=2, extractors="inception"))


def write_folder(folder, images, labels=None, names=None):
    for i, image in enumerate(images):
        place = folder if labels is None else folder / (names[labels[i]] if names else str(labels[i]))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(place / f"{i:04d}.png")
    return folder


def read(report):
    assert report.read_text().startswith("<!doctype html>")
    return json.loads((report.parent / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def splits():
    return digits_splits(8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs beside each other: the classifier is trained once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def some(splits):
    """Digits a little too bold, N of each class, sorted by class."""
    rows = np.concatenate([np.flatnonzero(splits.reference.labels == c)[:N] for c in range(10)])
    return np.minimum(splits.reference.images[rows], 200), np.repeat(np.arange(10), N)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, some):
    return write_folder(tmp_path_factory.mktemp("files") / "samples", *some)


@pytest.fixture(scope="module")
def classwise(runs, folder):
    return read(evaluate_images(DIGITS, folder, None, runs / "classwise"))


def test_folder_against_data_set_is_as_the_same_images_generated(classwise, runs, splits, some):
    images, _ = some
    options = DIGITS.evaluation
    direct = evaluate_generator(
        HostFakes(lambda labels, indices: (images[indices], None)),
        reference=splits.reference,
        extractors=load_extractors(DIGITS, splits, runs / "cache"),
        class_groups=class_groups(splits.train.class_counts),
        settings=dataclasses.replace(options.settings, samples_per_class=N),
        train=splits.train,
    )
    for key in ("metrics", "per_class", "real_vs_real", "memorisation"):
        assert classwise[key] == direct[key], key
    assert classwise["metrics"]["fid"] > 0.1 and classwise["metrics"]["class_accuracy"] > 0.7
    protocol = classwise["protocol"]
    assert protocol["weights"] == "files" and protocol["images"] == "samples" and protocol["reference"] == "digits_lt"
    assert protocol["n_fake_per_class"] == N and protocol["truncation_psi"] is None
    assert len(protocol["images_fingerprint"]) == 64
    assert protocol["reference_fingerprint"] == splits.reference.fingerprint
    assert not (runs / "classwise" / ".evaluation").exists() or not any((runs / "classwise" / ".evaluation").iterdir())


def test_samples_of_this_package_are_the_same(classwise, runs, tmp_path, some):
    images, labels = some
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(order % N, kind="stable")]  # classes mixed, each in its order
    np.savez(tmp_path / "step9.npz", images=images[order], labels=labels[order])
    result = read(evaluate_images(DIGITS, tmp_path / "step9.npz", None, runs / "npz"))
    assert result["per_class"] == classwise["per_class"] and result["metrics"] == classwise["metrics"]


def test_flat_folder_is_one_class(classwise, runs, tmp_path, some, capsys):
    result = read(evaluate_images(DIGITS, write_folder(tmp_path / "flat", some[0]), None, runs / "flat"))
    metrics, pooled = result["metrics"], classwise["metrics"]
    for key in ("fid", "precision", "recall", "density", "coverage", "kid", "auth_pct"):
        assert metrics[key] == pytest.approx(pooled[key]), key
    assert metrics["class_accuracy"] is None and classwise["per_class"]
    protocol, real_vs_real = result["protocol"], result["real_vs_real"]
    assert protocol["classes"] is False and classwise["protocol"]["classes"] is True
    assert protocol["num_classes"] == 1 and protocol["class_groups"] == {} and result["per_class"] == []
    assert protocol["n_fake_per_class"] is None and protocol["n_fake"] == 10 * N
    assert metrics["ifid"] is metrics["ifid_std"] is metrics["class_recall"] is real_vs_real["ifid"] is None
    assert (
        real_vs_real["class_precision"] is None
        and real_vs_real["fid"] > 0
        and "within_class" not in result["memorisation"]
    )
    assert not any("of 1 classes" in warning for warning in protocol["warnings"])
    note = "The images of this evaluation have no classes, so everything is compared as one class."
    assert note in result["protocol"]["warnings"] and note in (runs / "flat" / "report.html").read_text()
    output = capsys.readouterr().out
    assert note in output and "FID" in output and "flat " in output


def test_colours_are_the_data_sets_where_its_classifier_measures(classwise, runs, tmp_path, some):
    images, labels = some
    folder = write_folder(tmp_path / "colour", np.repeat(images, 3, axis=-1), labels)  # as torchvision saves grey ones
    assert read(evaluate_images(DIGITS, folder, None, runs / "colour"))["metrics"] == classwise["metrics"]


def _tiny(seen=None):
    """A random projection of the image's means over 4x4 squares, whatever its size."""
    matrix = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)

    @jax.jit
    def apply(matrix, images):
        side = images.shape[1] // 4
        grey = images.astype(jnp.float32).mean(axis=-1) / 255
        means = grey.reshape(-1, 4, side, 4, side).mean(axis=(2, 4)).reshape(-1, 16)
        return jnp.matmul(means, matrix, precision="highest"), jnp.zeros((len(images), 0))

    def counted(matrix, images):
        if seen is not None:
            seen.append(len(images))
        return apply(matrix, images)

    return FeatureExtractor("tiny", "0" * 64, {"what": "random projection"}, 6, matrix, counted)


@pytest.fixture
def tiny(monkeypatch):
    """Evaluations with a network that needs no files."""
    monkeypatch.setattr(module, "check_evaluation", lambda *_, **__: None)
    monkeypatch.setattr(module, "load_extractors", lambda config, splits, cache: {"inception": _tiny()})


def test_folder_against_itself(tiny, monkeypatch, tmp_path, some):
    monkeypatch.setattr(module, "load_run_data", lambda *_: pytest.fail("the data set of the configuration was loaded"))
    folder = write_folder(tmp_path / "photos", *some, names=[f"class {c}" for c in range(10)])
    for c in range(5):
        shutil.rmtree(folder / f"class {c}")
    for rare in (10, 11):  # class 9 is the tail
        (folder / "class 9" / f"{9 * N + rare:04d}.png").unlink()
    result = read(evaluate_images(CLEAN, folder, folder, tmp_path / "out"))
    metrics, protocol = result["metrics"], result["protocol"]
    assert abs(metrics["fid"]) < 1e-6 and abs(metrics["ifid"]) < 1e-6
    assert metrics["precision"] == metrics["recall"] == 1 and metrics["coverage"] == 1
    assert protocol["class_groups"] == {"head": [0, 1], "medium": [2], "tail": [3, 4]}
    assert (
        protocol["n_fake_per_class"] is None and protocol["n_fake"] == 5 * N - 2 and protocol["reference"] == "photos"
    )
    assert protocol["images_fingerprint"] == protocol["reference_fingerprint"]
    assert [row["name"] for row in result["per_class"]] == [f"class {c}" for c in range(5, 10)]
    assert "memorisation" not in result


def test_other_sizes_and_colours_where_the_network_resizes(tiny, tmp_path, some, splits):
    images, labels = some
    large = np.repeat(images.repeat(2, axis=1).repeat(2, axis=2), 3, axis=-1)
    as_they_are = read(evaluate_images(CLEAN, write_folder(tmp_path / "a", images, labels), None, tmp_path / "1"))
    enlarged = read(evaluate_images(CLEAN, write_folder(tmp_path / "b", large, labels), None, tmp_path / "2"))
    assert enlarged["metrics"]["fid"] == pytest.approx(as_they_are["metrics"]["fid"], rel=1e-4)
    assert as_they_are["metrics"]["fid"] > 1e-4
    protocol = enlarged["protocol"]
    assert (protocol["images_resolution"], protocol["resolution"]) == (16, 8)
    assert protocol["n_real"] == len(splits.reference) and enlarged["metrics"]["auth_pct"] is not None


def test_neighbours_of_files_are_shown_in_features_and_in_pixels(tiny, monkeypatch, tmp_path, splits):
    drawn, draw = [], evaluation_sheets.neighbour_sheet
    monkeypatch.setattr(
        evaluation_sheets,
        "neighbour_sheet",
        lambda *given, in_pixels: drawn.append((*given[:4], in_pixels)) or draw(*given, in_pixels=in_pixels),
    )
    train = splits.train
    rows = np.concatenate([np.flatnonzero(train.labels == c)[:N] for c in range(10)])
    copies, labels = train.images[rows], train.labels[rows]
    report = evaluate_images(CLEAN, write_folder(tmp_path / "copies", copies, labels), None, tmp_path / "1")
    ((fakes, _, _, classes, (nearest, distances)),) = drawn
    examples = read(report)["memorisation"]["examples"]
    np.testing.assert_array_equal(nearest[:, 0], fakes)
    assert len(classes) == len(examples) == 10 and not distances[:, 0].any() and (distances[:, 1] > 0).all()
    for image, c, shown, example in zip(fakes, classes, nearest, examples, strict=True):
        np.testing.assert_array_equal(image, copies[labels == c][0])
        np.testing.assert_array_equal(shown, train.images[example["pixel_nearest"]])
    assert "Nearest training images." in report.read_text()

    drawn.clear()
    colour = write_folder(tmp_path / "colour", np.repeat(copies, 3, axis=-1), labels)  # whose pixels are others
    evaluate_images(CLEAN, colour, None, tmp_path / "2")
    assert [in_pixels for *_, in_pixels in drawn] == [None]


def test_killed_evaluation_goes_on(tiny, monkeypatch, tmp_path, some):
    monkeypatch.setattr(generated_features, "_PART", 3 * N)
    folder = write_folder(tmp_path / "samples", *some)
    seen, extract_features = [], FileFakes.extract_features

    def killed(self, extract, labels, indices):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(indices.tolist())
        return extract_features(self, extract, labels, indices)

    monkeypatch.setattr(FileFakes, "extract_features", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_images(CLEAN, folder, None, tmp_path / "out")
    monkeypatch.setattr(
        FileFakes,
        "extract_features",
        lambda self, *rest: seen.append(rest[2].tolist()) or extract_features(self, *rest),
    )
    result = read(evaluate_images(CLEAN, folder, None, tmp_path / "out"))
    examples = [example["index"] for example in result["memorisation"]["examples"]]  # again, for their pixels
    assert sorted(itertools.chain(*seen)) == sorted([*range(10 * N), *examples])  # all others once
    again = read(evaluate_images(CLEAN, folder, None, tmp_path / "anew"))
    assert result == again

    (folder / "3" / "0036.png").write_bytes((folder / "3" / "0037.png").read_bytes())
    changed = read(evaluate_images(CLEAN, folder, None, tmp_path / "changed"))
    assert changed["per_class"][3] != result["per_class"][3]


def test_evaluation_of_something_else_is_not_replaced(tiny, tmp_path, some):
    images, labels = some
    one = write_folder(tmp_path / "one" / "samples", images, labels)
    other = write_folder(tmp_path / "other" / "samples", images[:, ::-1], labels)
    workdir = tmp_path / "images-samples"
    before = evaluate_images(CLEAN, one, None, workdir).parent / "evaluation.json"
    text = before.read_text()

    def refused(message, *arguments):
        with pytest.raises(UserError, match=message) as error:
            evaluate_images(*arguments, workdir)
        assert "give another --workdir." in str(error.value) and before.read_text() == text

    refused(r"holds an evaluation of other images or classes \(called samples\)", CLEAN, other, None)
    refused(r"against another reference \(called digits_lt\)", CLEAN, one, other)
    tf1 = dataclasses.replace(CLEAN, evaluation=dataclasses.replace(CLEAN.evaluation, protocol="tf1"))
    refused("by the protocol clean, not tf1", tf1, one, None)
    more = dataclasses.replace(CLEAN, evaluation=dataclasses.replace(CLEAN.evaluation, neighbours=3))
    assert read(evaluate_images(more, one, None, workdir))["protocol"]["k"] == 3  # of the same, measured otherwise
    before.write_text("{")
    text = "{"
    refused("not readable", CLEAN, one, None)


@pytest.mark.parametrize("scale", [1, 2])
def test_classifier_that_cannot_be_had_is_left_out(monkeypatch, tmp_path, some, scale):
    asked = []

    def load_extractors(config, splits, cache):
        asked.append(config.evaluation.extractors)
        return {"inception": _tiny()}

    monkeypatch.setattr(module, "check_evaluation", lambda *_, **__: None)
    monkeypatch.setattr(module, "load_extractors", load_extractors)
    both = dataclasses.replace(
        CLEAN, evaluation=dataclasses.replace(CLEAN.evaluation, extractors="inception,classifier")
    )
    images, labels = some
    folder = write_folder(tmp_path / "a", images.repeat(scale, axis=1).repeat(scale, axis=2), labels)
    reference = folder if scale == 1 else None
    result = read(evaluate_images(both, folder, reference, tmp_path / "out"))
    assert asked == ["inception"] and result["metrics"]["class_accuracy"] is None
    why = "which --reference replaces" if reference else "sees images of 8 px only, and these are of 16 px"
    assert [w for w in result["protocol"]["warnings"] if w.startswith("There is no class accuracy") and why in w]
    flat = write_folder(tmp_path / "flat", images)
    assert read(evaluate_images(both, flat, None, tmp_path / "2"))["protocol"]["classes"] is False
    assert asked == ["inception"] * 2


def test_classes_of_samples_are_known_by_their_names(tiny, tmp_path, some):
    images, labels = some
    data = DataConfig("synthetic", 8, options={"num_classes": 10, "channels": 1, "num_images": 200})
    config = dataclasses.replace(CLEAN, data=data)
    names = np.array([f"class {9 - c}" for c in range(10)])  # counted the other way
    np.savez(tmp_path / "a.npz", images=images, labels=labels, class_names=names)
    by_name = read(evaluate_images(config, tmp_path / "a.npz", None, tmp_path / "1"))
    np.savez(tmp_path / "b.npz", images=images, labels=9 - labels)
    by_id = read(evaluate_images(config, tmp_path / "b.npz", None, tmp_path / "2"))
    assert by_name["metrics"]["ifid"] == pytest.approx(by_id["metrics"]["ifid"]) and by_id["metrics"]["ifid"] > 0
    np.savez(tmp_path / "c.npz", images=images, labels=labels + 1)
    with pytest.raises(UserError, match="class id 10, but the reference's are 0 to 9;"):
        evaluate_images(config, tmp_path / "c.npz", None, tmp_path / "3")
    np.savez(tmp_path / "d.npz", images=images, labels=labels, class_names=np.char.replace(names, "7", "seven"))
    with pytest.raises(UserError, match="a class 'class seven', which is none of the 10 of the reference"):
        evaluate_images(config, tmp_path / "d.npz", None, tmp_path / "3")
    assert not (tmp_path / "3").exists()


def test_classes_without_images(tiny, tmp_path, some):
    images, labels = some
    kept = labels < 7  # nothing of the tail
    folder = write_folder(tmp_path / "samples", images[kept], labels[kept])
    result = read(evaluate_images(CLEAN, folder, None, tmp_path / "out"))
    assert result["per_class"][7]["ifid"] is None and result["per_class"][7]["n_fake"] == 0
    metrics = result["metrics"]
    assert metrics["ifid_classes_used"] == 7 and metrics["medium_ifid"] > 0 and metrics["medium_fid"] > 0
    assert metrics["tail_ifid"] is None and metrics["tail_fid"] is None and metrics["tail_recall"] is None
    assert "There are no generated images of 3 of 10 classes." in result["protocol"]["warnings"]


def test_what_does_not_fit_is_refused(runs, tmp_path, folder, some):
    def refused(message, *arguments):
        with pytest.raises(UserError, match=message) as error:
            evaluate_images(*arguments)
        assert "\n" not in str(error.value)

    refused("that --reference replaces; give .*=tf1 .*extractors=inception", DIGITS, folder, folder, tmp_path / "out")
    large = write_folder(tmp_path / "large", some[0].repeat(2, axis=1).repeat(2, axis=2), some[1])
    refused("are of 16 px and the data set of 8 px.*=tf1 .*=inception", DIGITS, large, None, tmp_path / "out")
    way_out = EvaluationConfig(protocol="tf1", extractors="inception", weights=str(tmp_path / "none"))
    as_said = dataclasses.replace(DIGITS, evaluation=way_out)
    refused("weights of .*Inception", as_said, folder, folder, tmp_path / "out")  # which are the next thing to get
    refused("There is no", DIGITS, tmp_path / "nowhere", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    refused("workdir of a training run", DIGITS, folder, None, tmp_path / "run")
    few = write_folder(tmp_path / "few", some[0][:3])
    refused("at least 6 generated images", DIGITS, few, None, runs / "few")


@pytest.fixture
def run_command(monkeypatch, capsys):
    """The command with a configuration of digits; what was evaluated, or what it said."""

    def run(*arguments):
        calls = []
        monkeypatch.setattr(module, "evaluate_images", lambda *given: calls.append(given) or "there")
        with flagsaver.flagsaver():
            try:
                command.parse_flags(["main", f"--config={ROOT}/configs/digits_lt.py", *arguments])
                command.main(["main"])
            except SystemExit as status:
                assert status.code == 2 and not calls
                return capsys.readouterr().err
        assert capsys.readouterr().out == "Report: there\n"
        ((config, *rest),) = calls
        assert config.data.name == "digits_lt"
        return rest

    return run


def test_command(run_command, tmp_path):
    (tmp_path / "v1.5").mkdir()
    folder = f"{tmp_path}/v1.5/"
    mode = "--mode=evaluate"
    assert run_command(mode, f"--images={folder}") == [folder, None, "runs/images-v1.5"]
    assert run_command(mode, "--images=a/b.npz", "--reference=c") == ["a/b.npz", "c", "runs/images-b"]
    assert run_command(mode, "--images=a.npz", "--workdir=w") == ["a.npz", None, "w"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images=a"], "--images is for --mode=evaluate or project, not for train."),
        (["--mode=sample", "--reference=a"], "--reference is for --mode=evaluate, not for sample."),
        (["--mode=evaluate", "--reference=a"], "give them too: --images="),
        (["--mode=evaluate", "--images="], "one of them is empty"),
        (["--mode=evaluate", "--images=a", "--checkpoint=best"], "--checkpoint names a trained generator"),
    ],
)
def test_command_refuses(run_command, arguments, message):
    said = run_command(*arguments)
    assert said.startswith("Error: ") and message in said and said.count("\n") == 1
