"""Building blocks of self-contained HTML pages: page frame, embedded images, and tables of escaped text."""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

#: A flag of a command within a sentence.
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1f2328; --page: #fff; --soft: #4d5560; --line: #d0d5db; --box: #f4f5f7;
        --good: #e9f5ea; --bad: #fdeef0; --alarm: #b00020; --link: #0b57d0; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e6e8eb; --page: #15181c; --soft: #b3bac3; --line: #3a414a; --box: #22272e;
          --good: #17331d; --bad: #421d23; --alarm: #ff8a96; --link: #9ecbff; }}
}}
body {{ max-width: {width}rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif;
       color: var(--text); background: var(--page); }}
h1 {{ font-size: clamp(1.3rem, 5vw, 1.6rem); margin-bottom: 0.3rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin-top: 2.2rem; overflow-wrap: anywhere; }}
h3 {{ font-size: 1rem; overflow-wrap: anywhere; }}
p, li, summary {{ overflow-wrap: anywhere; }}
.flag {{ white-space: nowrap; }}
a {{ color: var(--link); }}
.verdict {{ font-size: 1.2rem; font-weight: 600; margin: 0.8rem 0; }}
.notice {{ border-left: 4px solid var(--alarm); background: var(--bad); padding: 0.6rem 1rem; }}
.scroll {{ overflow-x: auto; margin: 0.6rem 0; }}
summary {{ cursor: pointer; font-weight: 600; margin: 0.6rem 0; }}
img {{ max-width: max(100%, 34rem); height: auto; border-radius: 4px; }}
img.narrow {{ max-width: 100%; }}
table {{ border-collapse: collapse; font-size: 0.85rem; }}
td, th {{ padding: 0.25rem 0.55rem; border-bottom: 1px solid var(--line); text-align: left; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
tr.better td {{ background: var(--good); }} tr.worse td {{ background: var(--bad); }}
tr.not td {{ color: var(--soft); }}
pre {{ background: var(--box); padding: 0.7rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.8rem;
       line-height: 1.45; }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def page(title: str, body: str, width: int) -> str:
    """Complete HTML page with a maximum width of ``width`` rem; ``body`` is HTML."""
    return FRAME.format(title=html.escape(title), body=body, width=width)


def inline(png: bytes, alternative: str, narrow: bool = False) -> str:
    """Image element with the PNG data embedded.

    On a phone, a ``narrow`` image shrinks; others stay legible and scroll within their box.
    """
    data = base64.b64encode(png).decode()
    kind = ' class="narrow"' if narrow else ""
    image = f'<img alt="{html.escape(alternative)}"{kind} src="data:image/png;base64,{data}">'
    return image if narrow else _scrolling(image, alternative)


def _scrolling(content: str, name: str) -> str:
    """A box that scrolls sideways by itself, also with the keyboard."""
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{html.escape(name)}">{content}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int, kinds: Sequence[str] = ()) -> str:
    """Table of escaped text; the last ``numbers`` columns are right-aligned, ``kinds`` are CSS classes of rows."""

    def line(cells: Sequence[str], tag: str, kind: str = "") -> str:
        columns = [""] * (len(cells) - numbers) + [' class="number"'] * numbers
        scope = ' scope="col"' if tag == "th" else ""
        pairs = zip(cells, columns, strict=True)
        content = (f"<{tag}{scope}{column}>{html.escape(cell)}</{tag}>" for cell, column in pairs)
        return f"<tr{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{''.join(content)}</tr>"

    rows = list(rows)
    lines = [line(row, "td", kind) for row, kind in zip(rows, kinds or [""] * len(rows), strict=True)]
    content = "<table>\n" + "\n".join([line(head, "th"), *lines]) + "\n</table>"
    return _scrolling(content, f"Table: {', '.join(head)}")


def prose(text: str) -> str:
    """Escaped text in which no flag of a command is broken at its dashes.

    >>> prose("a < b: give --draws")
    'a &lt; b: give <span class="flag">--draws</span>'
    """
    return FLAG.sub(r'<span class="flag">\g<0></span>', html.escape(text))


def lead(text: str) -> str:
    """The sentence that a page begins with."""
    return f'<p class="verdict">{prose(text)}</p>'


def bullets(lines: Iterable[str]) -> str:
    """Bullet list of escaped text.

    >>> bullets(["a < b"])
    '<ul><li>a &lt; b</li></ul>'
    """
    return "<ul>" + "".join(f"<li>{prose(line)}</li>" for line in lines) + "</ul>"


def folded(summary: str, text: str) -> str:
    """Collapsible block of preformatted, escaped text."""
    return details(summary, f"<pre>{html.escape(text)}</pre>")


def details(summary: str, body: str) -> str:
    """Collapsible block of HTML."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{body}\n</details>"


def notice(text: str) -> str:
    """Escaped text in a red box."""
    return f'<p class="notice">{prose(text)}</p>'


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
    return f"<p>{html.escape(facts)}</p>\n" + table(("weights", "tensors", "parameters"), rows, numbers=2)
