"""Griffe extension: reStructuredText in docstrings becomes Markdown.

Doctests and formulas become code blocks (Markdown would show ``>>>`` as nested quotations), and roles become code.
"""

import re
from typing import Any

import griffe

#: A paragraph that begins with a prompt, with its output.
DOCTEST = re.compile(r"^(>>> .*(?:\n.+)*)", re.M)


#: A formula on the lines after ``.. math::``, or on the same line.
FORMULA = re.compile(r"^\.\. math::[ ]*\n?((?:[ ]*\S.*\n?)|(?:\n(?=    )))+", re.M)
ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")


class DocstringsToMarkdown(griffe.Extension):
    """Rewrite every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a class, function or module."""
        if obj.docstring:
            text = ROLE.sub(r"``\1``", obj.docstring.value)
            text = DOCTEST.sub(r"```pycon\n\1\n```", FORMULA.sub(fence_formula, text))
            obj.docstring.value = re.sub(r"(?<!`)``([^`\n]+)``(?!`)", r"`\1`", text)


def fence_formula(match: re.Match[str]) -> str:
    """The formula of a ``.. math::`` directive as a block of LaTeX."""
    lines = match[0].removeprefix(".. math::").strip().splitlines()
    return "\n".join(["```latex", *(line.strip() for line in lines if line.strip()), "```", ""])
