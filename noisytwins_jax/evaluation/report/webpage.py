"""Building blocks of a self-contained HTML page: no scripts, no requests, light and dark, wide and narrow screens."""

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.files import write_atomically
from noisytwins_jax.utils.plotting import figure_png

Picture = bytes | Image.Image | Figure  # bytes: a PNG file

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c1e26; --faint: #5d6270; --rule: #dcdfe6;
  --accent: #0b5cad; --warn: #fff4dc; --warn-rule: #d9a441; }
@media (prefers-color-scheme: dark) { :root { --page: #14161b; --card: #1d2027; --ink: #e7e9ee; --faint: #a3a9b7;
  --rule: #353a45; --accent: #7db7f5; --warn: #33290f; --warn-rule: #b48a3a; } img { filter: brightness(.9); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .5rem 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .4rem 0; max-width: 46rem; }
.lede, .faint, figcaption p, small { color: var(--faint); }
section, details { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 1.1rem 1.2rem; margin: 1rem 0; }
.beside { display: grid; grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr); gap: 1rem; }
.beside section { margin: 0; }
.wide { overflow-x: auto; margin-bottom: 1.4rem; } .wide:last-child { margin-bottom: 0; }
.hint { display: none; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding-bottom: .4rem; }
th, td { padding: .34rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: baseline; }
th { font-weight: 600; } thead th { color: var(--faint); font-size: .875rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child > * { border-bottom: 0; }
th small { display: block; font-weight: 400; line-height: 1.3; }
.best { color: var(--accent); font-weight: 700; }
dl { margin: 0; } dl.pairs { display: grid; grid-template-columns: fit-content(45%) minmax(0, 1fr); gap: .3rem 1rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
dl.words dt { color: var(--ink); font-weight: 600; margin-top: .7rem; } dl.words dd { max-width: 46rem; }
code, pre { font: .8125rem/1.5 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
pre { overflow-x: auto; margin: .8rem 0 0; }
summary { cursor: pointer; font-weight: 600; }
figure { margin: 0 0 1.6rem; } figure:last-child { margin-bottom: 0; } figcaption { margin-bottom: .6rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
.callout { background: var(--warn); border: 1px solid var(--warn-rule); border-radius: 10px; padding: .6rem 1.2rem;
  margin: 1rem 0; } .callout ul { margin: .2rem 0; padding-left: 1.2rem; }
@media (max-width: 48rem) { .beside { grid-template-columns: minmax(0, 1fr); } main { padding: .75rem .6rem 3rem; }
  section, details { padding: .9rem .85rem; } th, td { padding: .34rem .4rem; } .hint { display: block; }
  thead th:first-child { min-width: 7.5rem; }
  .picture { overflow-x: auto; }
  .picture img { max-width: none; width: max(100%, min(40rem, var(--natural))); } }
@media (min-width: 48rem) { thead th { white-space: nowrap; } }
@media print { body, section, details { background: #fff; } section { break-inside: avoid; } }
"""

# Makes browsers refuse any request that the page might make.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def escape(text: object) -> str:
    """Escape text for HTML."""
    return html.escape(str(text))


def page(title: str, lede: str, body: Sequence[str]) -> str:
    """Return a whole document from ``title`` and ``lede`` (plain text) and ``body`` (HTML fragments)."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lede">{escape(lede)}</p>\n'
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *pieces: str) -> str:
    """Return a card with a heading; an empty string if every piece is empty."""
    content = "\n".join(piece for piece in pieces if piece)
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>" if content else ""


def side_by_side(*sections: str) -> str:
    """Place sections side by side on a wide screen, one below the other on a narrow one."""
    return '<div class="beside">\n' + "\n".join(sections) + "\n</div>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return a table of HTML cells that scrolls sideways on narrow screens; an empty string without rows."""
    if not rows:
        return ""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    lines = "\n".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    caption_html = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{caption_html}<thead><tr>{top}</tr></thead>\n<tbody>{lines}</tbody></table></div>'


def _is_hash(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def definition_list(items: Sequence[tuple[str, str]], kind: str = "pairs") -> str:
    """Return names and plain-text values: ``kind`` "pairs" in two columns, "words" as terms with explanations."""
    escaped = [(escape(name), f"<code>{value}</code>" if _is_hash(value) else escape(value)) for name, value in items]
    entries = "\n".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in escaped)
    return f'<dl class="{kind}">\n{entries}\n</dl>' if items else ""


def callout(notes: Sequence[str]) -> str:
    """Return a highlighted list of notes; an empty string without any."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<div class="callout" role="note"><ul>{items}</ul></div>' if items else ""


def details(summary: str, text: str) -> str:
    """Return preformatted text that unfolds when its summary is clicked."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n<pre>{escape(text)}</pre>\n</details>"


def png_bytes(picture: Picture) -> bytes:
    """Encode a picture as a PNG file.

    Raises:
      UserError: bytes that are not a PNG file.
    """
    if isinstance(picture, Figure):
        return figure_png(picture)
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()
    if not picture.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UserError("A report's pictures given as bytes must be PNG files.")
    return picture


def figure(caption: str, picture: Picture) -> str:
    """Embed a picture in the page, with its caption above: the first sentence is the heading."""
    data = png_bytes(picture)
    width, height = Image.open(io.BytesIO(data)).size
    heading, _, rest = caption.partition(". ")
    text = f"<p>{escape(rest)}</p>" if rest else ""
    hint = '<small class="hint">Scroll sideways to see all of it.</small>' if width > 640 else ""
    source = base64.b64encode(data).decode("ascii")
    return (
        f"<figure>\n<figcaption><h3>{escape(heading.rstrip('.'))}</h3>{text}{hint}</figcaption>\n"
        f'<div class="picture" style="--natural:{width}px"><img width="{width}" height="{height}" '
        f'alt="{escape(caption)}" src="data:image/png;base64,{source}"></div>\n</figure>'
    )


def write_page(path: str | os.PathLike, text: str) -> Path:
    """Write a page atomically, creating its directory."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    return path
