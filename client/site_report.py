"""Show a site's operator what the node's store holds: the contact sheet of synthetic examples.

Synthetic images may resemble real ones closely, so they are personal data. This page is for the
site alone: it is written for its owner only, and no message of the node ever carries it. In the
store, under the name `client.store.REPORT`, it is destroyed together with the images.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from PIL import Image
from torch import Tensor

from client.errors import BadSetting
from client.files import write_atomic

_COLUMNS = 20
_MARGIN = 1  # pixels around each image

# Inline, and not a file: a Flower app bundle carries Python files, but no templates.
_TEMPLATE = """
{%- macro listing(rows) %}
{% if rows %}
{% set keys = [] %}
{% for row in rows %}
{% for key in row if key not in keys %}{{ keys.append(key) or "" }}{% endfor %}
{% endfor %}
<div class="scroll"><table class="text">
<thead><tr>{% for key in keys %}<th scope="col">{{ key }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for key in keys %}<td>{{ row.get(key, "–") }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% else %}
<p>None.</p>
{% endif %}
{% endmacro -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>Site report of {{ node }} · Efface</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1b2430; --muted: #566273;
  --rule: #d3d9e1; --soft: #f6f8fa; --warn: #a42a12; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #12161b; --ink: #e4e8ed;
  --muted: #a0abb8; --rule: #343d48; --soft: #1a2027; --warn: #ff9d80; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 3rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 "Source Sans 3", "Segoe UI", system-ui, "Liberation Sans", Arial, sans-serif; }
main { max-width: 56rem; margin-inline: auto; }
h1 { font: 600 2rem/1.2 Charter, Georgia, "Liberation Serif", serif; margin: .2rem 0 .35rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; padding-top: .7rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; overflow-wrap: anywhere; }
h3 span, .note { color: var(--muted); font-weight: 400; font-size: .9rem; }
.over { font-size: .8rem; letter-spacing: .09em; text-transform: uppercase; color: var(--muted);
  margin: 0; }
.warning { background: var(--soft); border-left: 5px solid var(--warn); padding: .9rem 1.2rem;
  margin: 1.5rem 0; }
.warning b { color: var(--warn); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .93rem; min-width: 20rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .9rem; text-align: right; }
th:first-child, td:first-child, .text th, .text td { text-align: left; padding-left: 0; }
thead th { color: var(--muted); font-size: .84rem; border-bottom: 1px solid var(--ink); }
tbody th { font-weight: 500; }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
tr.total > * { font-weight: 650; border-top-color: var(--muted) !important; }
img { display: block; image-rendering: pixelated; max-width: 100%; height: auto; }
@media print { @page { size: A4; margin: 15mm; } body { padding: 0; font-size: 10pt; }
  main { max-width: none; } img, table { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<p class="over">Efface · site report</p>
<h1>{{ node }}</h1>
<p class="warning"><b>For this site only.</b> The examples that the store holds are synthetic,
but they were made from this site’s data and may resemble it closely: treat them as personal data.
The node never sends them, and neither should you.</p>
<h2>What the store holds</h2>
{% if counts %}
<div class="scroll"><table>
<thead><tr><th scope="col">Class</th><th scope="col">real examples</th>
<th scope="col">synthetic examples</th></tr></thead>
<tbody>
{% for name, real, synthetic in counts %}
<tr{% if loop.last %} class="total"{% endif %}><th scope="row">{{ name }}</th>
<td>{{ real }}</td><td>{{ synthetic }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
<h2>Tombstones</h2>
<p class="note">What was forgotten, and stays out of training until it is lifted.</p>
{{ listing(tombstones) }}
<h2>Requests applied here</h2>
{{ listing(requests) }}
<h2>Synthetic examples</h2>
{% for sheet in sheets %}
<h3>Class {{ sheet.name }} <span>{% if sheet.shown < sheet.count %}The first {{ sheet.shown }} of
{{ sheet.count }}{% else %}{{ sheet.count }}{% endif %}</span></h3>
<img src="data:image/png;base64,{{ sheet.png }}" width="{{ sheet.width }}"
 alt="{{ sheet.shown }} synthetic examples of class {{ sheet.name }}">
{% else %}
<p>{% if counts and counts[-1][2] %}They are no images of 1 or 3 channels, and are not shown.
{%- else %}The store holds no synthetic examples.{% endif %}</p>
{% endfor %}
</main>
</body>
</html>
"""


def write_site_report(
    path: Path,
    images: Tensor,
    labels: Tensor,
    *,
    node: str,
    real_counts: Mapping[int, int],
    class_names: Sequence[str] | None = None,
    tombstones: Sequence[Mapping[str, Any]] = (),
    requests: Sequence[Mapping[str, Any]] = (),
    max_per_class: int = 100,
) -> Path:
    """Write the page that shows a site's own synthetic examples, whole or not at all, mode 0600.

    Args:
        path: The file to write or replace. Its folder must exist.
        images: Synthetic examples `(N, ...)`, any device, float; N may be 0. Those that are images,
            `(N, C, H, W)`, C 1 or 3, are shown: pixels in [0, 1], not normalised; what lies outside
            is clipped. Others are counted.
        labels: Classes `(N,)` int64, at least 0.
        node: The node's name, as the operator knows it.
        real_counts: Real examples the site holds, by class.
        class_names: Name of class k at index k; a class without a name is shown by its number.
        tombstones: Rows of a table; its columns are the keys, in the order they first occur.
        requests: The same, of requests this node has applied.
        max_per_class: Images of one class to show; the page says when there are more.

    Returns:
        `path`.

    Raises:
        BadSetting: If a shape does not fit, or a pixel is not finite.
        OSError: If the file cannot be written.
    """
    if labels.shape != images.shape[:1]:
        raise BadSetting(
            f"labels must be one an example, got {tuple(labels.shape)} for {len(images)} examples"
        )
    if max_per_class < 1:
        raise BadSetting(f"max_per_class must be at least 1, got {max_per_class}")
    if not bool(torch.isfinite(images).all()):
        raise BadSetting("examples must be finite, got NaN or infinity; check the store")

    def name(label: int) -> str:
        return class_names[label] if class_names and label < len(class_names) else str(label)

    labels = labels.cpu()
    synthetic = Counter(sorted(labels.tolist()))
    counts = [
        (name(label), real_counts.get(label, 0), synthetic.get(label, 0))
        for label in sorted(real_counts.keys() | synthetic.keys())
    ]
    if counts:
        counts.append(("total", sum(real_counts.values()), len(labels)))
    sheets = []
    for label, count in synthetic.items() if are_images(images) else ():
        chosen = images[(labels == label).to(images.device)][:max_per_class]
        sheet = _montage(chosen)
        sheets.append(
            {
                "name": name(label),
                "count": count,
                "shown": len(chosen),
                "png": _png(sheet),
                # Enlarge small images to about 48 pixels each; never beyond the page.
                "width": sheet.shape[1] * max(1, round(48 / images.shape[-1])),
            }
        )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_TEMPLATE).render(
        node=node, counts=counts, tombstones=tombstones, requests=requests, sheets=sheets
    )
    write_atomic(path, page.encode())
    return path


def are_images(examples: Tensor) -> bool:
    """Return whether examples can be shown: `(N, C, H, W)`, C 1 or 3."""
    return examples.ndim == 4 and examples.shape[1] in (1, 3)


def _montage(images: Tensor) -> Tensor:
    """Return images `(N, C, H, W)`, N at least 1, side by side: one `(H', W', C)` uint8."""
    count, channels, height, width = images.shape
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    sheet = torch.full(
        (
            channels,
            rows * (height + _MARGIN) + _MARGIN,
            columns * (width + _MARGIN) + _MARGIN,
        ),
        255,
        dtype=torch.uint8,
    )
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    for index, image in enumerate(pixels):
        top = index // columns * (height + _MARGIN) + _MARGIN
        left = index % columns * (width + _MARGIN) + _MARGIN
        sheet[:, top : top + height, left : left + width] = image
    return sheet.permute(1, 2, 0)


def _png(sheet: Tensor) -> str:
    """Return `(H, W, 1 or 3)` uint8 as a PNG in base64."""
    array = sheet.numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
