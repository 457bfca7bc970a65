"""Building blocks of self-contained HTML pages: page frame, embedded images, and tables of escaped text."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: {width}rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222; }}
h1 {{ font-size: 1.6rem; margin-bottom: 0.3rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
.notice {{ border-left: 4px solid #b00020; background: #fdf1f2; padding: 0.6rem 1rem; }}
.scroll {{ overflow-x: auto; margin: 0.6rem 0; }}
summary {{ cursor: pointer; font-weight: 600; margin: 0.6rem 0; }}
img {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; }}
td, th {{ padding: 0.25rem 0.55rem; border-bottom: 1px solid #ddd; text-align: left; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
tr.better td {{ background: #eef7ee; }} tr.worse td {{ background: #fdf1f2; }} tr.not td {{ color: #444; }}
pre {{ background: #f5f5f5; padding: 0.7rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.8rem;
       line-height: 1.45; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(title: str, body: str, width: int) -> str:
    """Complete HTML page with a maximum width of ``width`` rem; ``body`` is HTML."""
    return FRAME.format(title=html.escape(title), body=body, width=width)


def inline(png: bytes, alternative: str) -> str:
    """Image element with the PNG data embedded."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int, kinds: Sequence[str] = ()) -> str:
    """Table of escaped text; the last ``numbers`` columns are right-aligned, ``kinds`` are CSS classes of rows."""

    def line(cells: Sequence[str], tag: str, kind: str = "") -> str:
        columns = [""] * (len(cells) - numbers) + [' class="number"'] * numbers
        content = (f"<{tag}{column}>{html.escape(cell)}</{tag}>" for cell, column in zip(cells, columns, strict=True))
        return f"<tr{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{''.join(content)}</tr>"

    rows = list(rows)
    lines = [line(row, "td", kind) for row, kind in zip(rows, kinds or [""] * len(rows), strict=True)]
    return '<div class="scroll"><table>\n' + "\n".join([line(head, "th"), *lines]) + "\n</table></div>"


def bullets(lines: Iterable[str]) -> str:
    """Bullet list of escaped text.

    >>> bullets(["a < b"])
    '<ul><li>a &lt; b</li></ul>'
    """
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def folded(summary: str, text: str) -> str:
    """Collapsible block of preformatted, escaped text."""
    return details(summary, f"<pre>{html.escape(text)}</pre>")


def details(summary: str, body: str) -> str:
    """Collapsible block of HTML."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{body}\n</details>"


def notice(text: str) -> str:
    """Escaped text in a red box."""
    return f'<p class="notice">{html.escape(text)}</p>'


#: Form of ``transfer_report.json``, as far as :func:`transfer_table` reads it.
TRANSFER_FORM = {
    "checkpoint": str,
    "branch": str,
    "decoder": str,
    "coverage": float,
    **{key: [{"parameters": int}] for key in ("matched", "adapted", "skipped", "missing")},
}


def transfer_table(report: dict[str, Any]) -> str:
    """Table of the transfer report: number of matched, adapted, skipped and missing tensors and parameters."""
    rows = []
    for kind in ("matched", "adapted", "skipped", "missing"):
        parameters = sum(entry["parameters"] for entry in report[kind])
        rows.append((kind, str(len(report[kind])), f"{parameters:,}"))
    facts = (
        f"{report['coverage']:.0%} of the encoder's stages come from {Path(report['checkpoint']).name} "
        f"({report['branch']}); decoder: {report['decoder']}."
    )
    return f"<p>{html.escape(facts)}</p>\n" + table(("", "tensors", "parameters"), rows, numbers=2)
