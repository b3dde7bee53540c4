"""The look of the page: fonts of the system, and the classes as bars from head to tail."""

from typing import Any

from noisytwins_jax.app.class_list import ClassList
from noisytwins_jax.utils.plotting import rank_colours

_FONT = ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONOSPACE = ("ui-monospace", "Menlo", "Consolas", "monospace")
_CSS = """
.gradio-container, .gradio-container > .main { width: 100%; max-width: 1440px !important; margin: 0 auto; }
#heading h1 { font-size: 1.5rem; font-weight: 650; margin: 0 0 .15rem; }
#heading p { color: var(--body-text-color-subdued); margin: 0; }
#classes .wrap { flex-direction: column; flex-wrap: nowrap; gap: 2px; max-height: 46vh; overflow-y: auto; }
#classes label { width: 100%; padding: 3px 10px; border: none; box-shadow: none; border-radius: 4px;
  background-color: transparent; background-repeat: no-repeat; color: var(--body-text-color); }
#classes label:not(.selected) { opacity: .45; }
#classes label span { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
#groups { gap: 6px; }
#groups button { min-width: 0; padding: 4px 6px; }
.picture .image-container > button { justify-content: flex-start; }
.picture .image-frame { display: flex; }
.picture .image-frame img { width: auto; height: auto; max-width: 100%; object-fit: contain; }
"""


def page_theme() -> Any:
    """Build the theme of Gradio."""
    import gradio as gr

    theme = gr.themes.Soft(font=list(_FONT), font_mono=list(_MONOSPACE), primary_hue="indigo", radius_size="sm")
    return theme.set(
        block_label_background_fill="transparent",
        block_label_text_color="*body_text_color",
        block_title_background_fill="transparent",
        block_title_padding="0",
        block_title_text_color="*body_text_color",
        block_title_text_weight="600",
        button_large_text_weight="500",
        button_small_text_weight="500",
    )


def page_css(classes: ClassList) -> str:
    """Return the style sheet, with a bar behind every class as long as its number of images."""
    if classes.counts is None:
        return _CSS
    order, largest = classes.order, max(classes.counts)
    starts = {ids[0] for name, ids in classes.groups.items() if name != "head" and ids}
    rules = []
    for place, (c, colour) in enumerate(zip(order, rank_colours(len(order)), strict=True), 1):
        rgb = " ".join(str(round(255 * x)) for x in colour[:3])
        bar = f"linear-gradient(rgb({rgb} / 30%), rgb({rgb} / 30%))"
        gap = " margin-top: 9px;" if c in starts else ""
        width = max(1.0, 100 * classes.counts[c] / largest)
        rules.append(
            f"#classes label:nth-of-type({place}) {{ background-image: {bar}; background-size: {width:.1f}% 100%;{gap} "
            f"border-left: 4px solid rgb({rgb}); }}"
        )
    return _CSS + "\n".join(rules)
