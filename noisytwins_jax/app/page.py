"""The page itself, in Gradio: controls on the left, a tab for each kind of picture."""

import functools
import html
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from noisytwins_jax.app.painter import DIRECTIONS, PARTS, Painter
from noisytwins_jax.app.uploads import MAX_BYTES, MAX_PIXELS, SUFFIXES
from noisytwins_jax.app.w_map import WMap, draw_w_map
from noisytwins_jax.utils.errors import UserError

_FIRST = "Samples"  # the tab that is open at first
_SHOWN = 10  # classes chosen at first
_LISTED = 200  # classes shown as a list; more are in a menu that can be searched
_PATIENCE = 2.0  # seconds for the first picture
_QUEUE = 32  # requests that wait at most
_ALL = "all classes"  # where a projection starts
# Nothing of the page is an interface for programs, and one picture is drawn at a time.
_EVENT: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "generator", "concurrency_limit": 1}
_LIVE: dict[str, Any] = {**_EVENT, "trigger_mode": "always_last", "show_progress": "minimal"}


def build_page(painter: Painter, title: str, seconds: float, folder: Path) -> gr.Blocks:
    """Build the page.

    Args:
      painter: draws its pictures.
      title: the run's name.
      seconds: that an image takes, for the number of images at first.
      folder: a temporary one, for animations.
    """
    with gr.Blocks(title=f"{title} · noisytwins_jax", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(_heading(painter, title), elem_id="heading")
        active = gr.State(_FIRST)  # name of the open tab
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                shared = _controls(painter)
            with gr.Column(scale=3, min_width=480), gr.Tabs():
                tabs = [_samples_tab(painter, seconds)]
                if painter.has_w:
                    tabs.append(_mixing_tab(painter))
                _animation_tab(painter, active, shared, folder)
                if painter.has_w:
                    tabs.append(_directions_tab(painter))
                    _projection_tab(painter, active)
                    tabs.append(_map_tab(painter, shared[1]))
        _follow_inputs(page, active, shared, tabs)
    return page.queue(max_size=_QUEUE, default_concurrency_limit=1)


def _heading(painter: Painter, title: str) -> str:
    classes, trained = painter.classes, painter.trained
    network = {"stylegan2": "StyleGAN2", "biggan": "BigGAN", "biggan_deep": "BigGAN-deep", "r3gan": "R3GAN"}
    counts = "" if classes.counts is None else f", {max(classes.counts)} to {min(classes.counts)} training images each"
    step = f" · step {trained.step}" if trained.step else ""
    name = network.get(trained.config.network, trained.config.network)
    text = f"{name} · {painter.side} px · {len(classes.names)} classes{counts}{step}"
    return f"<h1>{html.escape(title)}</h1><p>{html.escape(text)}</p>"


def _controls(painter: Painter) -> list[Any]:
    """Add what all pictures share; return the inputs: classes, strength of truncation, seed."""
    classes, slider = painter.classes, painter.slider
    counts = classes.counts
    choices = [(classes.names[c] + (f"  ·  {counts[c]}" if counts else ""), c) for c in classes.order]
    label = "Head to tail · training images" if counts else "Classes"
    start = classes.spread(_SHOWN)
    if len(choices) <= _LISTED:
        chosen = gr.CheckboxGroup(choices, value=start, label=label, elem_id="classes")
    else:
        chosen = gr.Dropdown(choices, value=start, label=label, multiselect=True)
    buttons = {"All": start} if len(classes.names) > _SHOWN else {"All": classes.order}
    buttons |= {name.capitalize(): ids[:_SHOWN] for name, ids in classes.groups.items() if ids}
    if len(classes.names) > _SHOWN:
        buttons = {"Head to tail" if name == "All" else name: ids for name, ids in buttons.items()}
    with gr.Row(elem_id="groups"):
        for name, ids in buttons.items():
            button = gr.Button(name, size="sm")
            button.click(lambda ids=ids: ids, None, chosen, api_visibility="private", show_progress="hidden")
    strength = gr.Slider(
        slider.low, slider.high, value=slider.high, step=slider.step, label=slider.label, info=slider.info
    )
    with gr.Group():
        seed = gr.Number(0, label="Seed", precision=0)
        dice = gr.Button("New seed", size="sm")
    dice.click(lambda: secrets.randbelow(10**6), None, seed, api_visibility="private", show_progress="hidden")
    return [chosen, strength, seed]


def _picture(label: str = "", **options: Any) -> gr.Image:
    """Add a picture that can be downloaded as PNG and seen in full size."""
    buttons = ["download", "fullscreen"]
    settings = {"format": "png", "interactive": False, "buttons": buttons, "show_label": bool(label), "label": label}
    return gr.Image(**{**settings, "elem_classes": "picture", **options})


class _LiveTab(NamedTuple):
    """A tab whose outputs follow the shared inputs and its own while it is open."""

    tab: gr.Tab
    draw: Callable[..., Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def _follow_inputs(page: gr.Blocks, active: gr.State, shared: Sequence[Any], tabs: Sequence[_LiveTab]) -> None:
    """Let the outputs of the open tab follow its inputs: one request for a change, whatever the number of tabs."""
    inputs, outputs = list(shared), [output for tab in tabs for output in tab.outputs]
    own = {}
    for tab in tabs:
        own[tab.tab.label] = tab, slice(len(inputs), len(inputs) + len(tab.inputs))
        inputs += tab.inputs

    @_explained
    def redraw(now: str, *values: Any) -> Any:
        if now not in own:
            return gr.skip()
        tab, place = own[now]
        arguments = [*values[: len(shared)], *values[place]]
        if any(value is None for value in arguments):
            raise UserError("A field is empty; give it a number.")
        result = tab.draw(*arguments)
        return dict(zip(tab.outputs, result if len(tab.outputs) > 1 else [result], strict=True))

    arguments = {"fn": redraw, "inputs": [active, *inputs], "outputs": outputs, **_LIVE}
    gr.on([*(x.change for x in inputs), page.load], **arguments)
    for tab in tabs:
        _activate(tab.tab, active).then(**arguments)


def _activate(tab: gr.Tab, active: gr.State) -> Any:
    """Remember which tab is open; return the event."""
    name = tab.label
    return tab.select(lambda: name, None, active, api_visibility="private", show_progress="hidden", queue=False)


def _samples_tab(painter: Painter, seconds: float) -> _LiveTab:
    classes = min(_SHOWN, len(painter.classes.names))
    fitting = int(_PATIENCE / max(seconds, 1e-6) / classes)
    with gr.Tab(_FIRST) as tab:
        per_class = gr.Slider(1, 16, value=min(10, max(1, fitting)), step=1, label="Images per class")
        picture = _picture()

    def draw(chosen: list[int], strength: float, seed: int, per_class: int) -> Image.Image:
        return painter.samples(chosen, per_class, strength, seed)

    return _LiveTab(tab, draw, [per_class], [picture])


def _mixing_tab(painter: Painter) -> _LiveTab:
    count = painter.trained.stylegan2_generator("Style mixing").num_ws
    with gr.Tab("Style mixing") as tab:
        layers = gr.CheckboxGroup(
            [(f"{i} · {min(painter.side, 4 * 2 ** ((i + 1) // 2))} px", i) for i in range(count)],
            value=list(range(count // 2, count)),
            label="Layers that each row takes from the column's image, from coarse to fine",
        )
        picture = _picture()

    def draw(chosen: list[int], strength: float, seed: int, layers: list[int]) -> Image.Image:
        return painter.mixed(chosen, layers, strength, seed)

    return _LiveTab(tab, draw, [layers], [picture])


def _animation_tab(painter: Painter, active: gr.State, shared: Sequence[Any], folder: Path) -> None:
    ways = [("From class to class", False), ("Within each class, from sample to sample", True)]
    with gr.Tab("Interpolation") as tab:
        within = gr.Radio(ways, value=True, show_label=False, container=False)
        frames = gr.Slider(4, 48, value=12, step=4, label="Frames from one sample to the next")
        button = gr.Button("Animate", variant="primary", size="md")
        picture = _picture(type="filepath")

    def draw(chosen: list[int], strength: float, seed: int, within: bool, frames: int) -> str:
        path = folder / f"animation-{secrets.token_hex(8)}.webp"
        return str(painter.animation(chosen, within, frames, strength, seed, path))

    _activate(tab, active)
    inputs = [*shared, within, frames]
    gr.on([button.click, within.change], _explained(draw), inputs, picture, show_progress="minimal", **_EVENT)


def _directions_tab(painter: Painter) -> _LiveTab:
    with gr.Tab("Directions") as tab:
        part = gr.Radio(list(PARTS), value=PARTS[0], show_label=False, container=False)
        with gr.Row():
            sliders = [
                gr.Slider(-4, 4, value=0, step=0.1, label=f"Direction {i + 1}", min_width=140)
                for i in range(min(DIRECTIONS, painter.trained.config.generator.w_dim))
            ]
        reset = gr.Button("Back to the samples", size="sm")
        picture = _picture()
    reset.click(lambda: [0] * len(sliders), None, sliders, api_visibility="private", show_progress="hidden")

    def draw(chosen: list[int], strength: float, seed: int, part: str, *amounts: float) -> Image.Image:
        return painter.edited(chosen, part, amounts, strength, seed)

    return _LiveTab(tab, draw, [part, *sliders], [picture])


def _projection_tab(painter: Painter, active: gr.State) -> None:
    limits = f"PNG, JPEG, WebP or BMP, up to {MAX_BYTES // 2**20} MB and {MAX_PIXELS // 10**6} megapixels"
    starts = [(_ALL, -1), *((painter.classes.names[c], c) for c in painter.classes.order)]
    with gr.Tab("Projection") as tab:
        with gr.Row():
            file = gr.File(
                label=f"Picture: {limits}", file_types=list(SUFFIXES), type="binary", height=190, scale=1, min_width=260
            )
            with gr.Column(scale=1, min_width=260):
                label = gr.Dropdown(starts, value=-1, label="Start from the mean of")
                steps = gr.Slider(50, 1000, value=300, step=50, label="Steps")
                per_layer = gr.Checkbox(False, label="Each layer its own w (W+): nearer, but less like the data")
                button = gr.Button("Project", variant="primary", size="md")
        picture = _picture()
        note = gr.HTML()

    def draw(
        data: bytes | None,
        label: int,
        steps: int,
        per_layer: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Image.Image, str]:
        if data is None:
            raise UserError("There is no picture yet; choose a file first.")
        report = lambda done, _: progress((done, int(steps)), desc="Projecting")  # noqa: E731
        progress(0.0, desc="Projecting")
        image, distance = painter.projection(data, None if label < 0 else int(label), steps, per_layer, report)
        return (
            image,
            f"Left the picture as the generator sees it, right its nearest image; mean square difference {distance:.4f}.",
        )

    _activate(tab, active)
    inputs = [file, label, steps, per_layer]
    gr.on([button.click, file.upload], _explained(draw), inputs, [picture, note], **_EVENT)


def _map_tab(painter: Painter, strength: gr.Slider) -> _LiveTab:
    @functools.lru_cache(maxsize=4)
    def map_of(classes: tuple[int, ...], seed: int) -> WMap:
        return draw_w_map(painter, classes, seed)

    with gr.Tab("W map") as tab:
        drawn = gr.State()
        with gr.Row():
            picture = _picture(scale=2)
            with gr.Column(scale=1, min_width=240):
                point = _picture()
                note = gr.HTML("Click on the map to see the image of that point.")

    def draw(chosen: list[int], _: float, seed: int) -> tuple[Image.Image, tuple]:
        key = tuple(sorted(chosen)), int(seed)
        return map_of(*key).image, key

    def look(event: gr.SelectData, key: tuple | None, strength: float) -> tuple[Any, ...]:
        if key is None:
            return gr.skip(), gr.skip(), gr.skip()
        found, (x, y) = map_of(tuple(key[0]), key[1]), event.index
        ws, label = found.at(x, y)
        text = f"Its nearest sample is of class <b>{html.escape(painter.classes.names[label])}</b>."
        return found.marked(x, y), painter.image_of_ws(ws, strength), text

    picture.select(_explained(look), [drawn, strength], [picture, point, note], **_LIVE)
    return _LiveTab(tab, draw, [], [picture, drawn])


def _explained(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Show what is wrong with an input as a message on the page, whose pictures stay.

    It is no `gr.Error`: after one, an event that always handles its last trigger is triggered again, without end.
    """

    @functools.wraps(draw)
    def safe(*values: Any) -> Any:
        try:
            return draw(*values)
        except UserError as error:
            gr.Warning(html.escape(str(error)), title="This cannot be drawn")
            return gr.skip()

    return safe
