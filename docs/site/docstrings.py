"""Griffe extension: reStructuredText in docstrings becomes Markdown.

Doctests become code blocks (Markdown would show ``>>>`` as nested quotations), roles become code, and formulas become
drawings, so that the pages need no script from elsewhere.
"""

import html
import io
import re
from typing import Any

import griffe
import matplotlib
from matplotlib.mathtext import math_to_image

#: A paragraph that begins with a prompt, with its output.
DOCTEST = re.compile(r"^(>>> .*(?:\n.+)*)", re.M)
#: A formula on the lines after ``.. math::``, or on the same line.
FORMULA = re.compile(r"^\.\. math::[ ]*\n?((?:[ ]*\S.*\n?)|(?:\n(?=    )))+", re.M)
ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
#: LaTeX that matplotlib's parser does not know, and what it draws instead.
SUBSTITUTES = (
    (r"\\(?:[bB]igg?|textstyle)(?![a-zA-Z])", ""),
    (r"\\[lr]Vert(?![a-zA-Z])", r"\\Vert"),
    (r"\\t?frac(?![a-zA-Z])\s*(\w)\s*(\w)", r"\\frac{\1}{\2}"),
    (r"\\tfrac(?![a-zA-Z])", r"\\frac"),
    (r"\\([gl]e)(?![a-zA-Z])", r"\\\1q"),
)
#: What matplotlib adds to a drawing: white background, description, style, identifiers of groups, line breaks.
NOT_DRAWN = re.compile(
    r'<g id="patch_1">.*?</g>|<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>|(?<=<g) id="[^"]*"|<!--.*?-->|\n\s*',
    re.S,
)


class DocstringsToMarkdown(griffe.Extension):
    """Rewrite every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a class, function or module."""
        if obj.docstring:
            text = ROLE.sub(r"``\1``", obj.docstring.value)
            text = DOCTEST.sub(r"```pycon\n\1\n```", FORMULA.sub(draw_formula, text))
            obj.docstring.value = re.sub(r"(?<!`)``([^`\n]+)``(?!`)", r"`\1`", text)


def draw_formula(match: re.Match[str]) -> str:
    """The formula of a ``.. math::`` directive as a drawing in the colour of the text, with its LaTeX for readers.

    Raises:
        ValueError: matplotlib cannot draw it.
    """
    lines = match[0].removeprefix(".. math::").strip().splitlines()
    formula = " ".join(line.strip() for line in lines if line.strip())
    known = formula
    for pattern, substitute in SUBSTITUTES:
        known = re.sub(pattern, substitute, known)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "formula", "mathtext.fontset": "dejavusans"}):
        math_to_image(f"${known}$", file, format="svg", color="#123456")
    svg = file.getvalue().partition("<svg")[2].replace("#123456", "currentColor")
    svg = NOT_DRAWN.sub(" ", svg)
    label = html.escape(formula, quote=True)
    box = '<div class="scrolling formula" tabindex="0" role="group" aria-label="Formula">'
    return f'{box}<svg role="img" aria-label="{label}" {svg.strip()}</div>\n'
