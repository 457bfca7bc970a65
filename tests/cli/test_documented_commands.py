"""The pages: every command that README.md and docs/ show exists, links lead somewhere, and lists stay whole."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from nnunet_invariance.cli.main import COMMANDS, make_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


def shown(page: Path) -> list[str]:
    """The commands in the code blocks of a page, continuation lines joined, comments removed."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    found = re.findall(r"^(?:    |\t)+.*?\b(?:nnunet-invariance|-m nnunet_invariance) (.+)$", text, re.M)
    return [re.split(r"\s+#|\s{4,}", line)[0] for line in found]


def sub_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def problems(command: str, parser: argparse.ArgumentParser) -> list[str]:
    """Flags and sub-commands of a command that the parser does not know."""
    words = shlex.split(command)
    while words and (below := sub_parsers(parser)):
        if words[0].startswith("-"):
            break
        if words[0] not in below:
            return [f"{words[0]!r} is none of {', '.join(below)}"]
        parser, words = below[words[0]], words[1:]
    known = parser._option_string_actions
    flags = [word.split("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    return [f"{flag} is not in the help" for flag in flags if flag not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_pages_exist(page):
    parser = make_parser({name: importlib.import_module(f"nnunet_invariance.cli.{name}") for name in COMMANDS})
    found = {command: wrong for command in shown(page) if (wrong := problems(command, parser))}
    assert found == {}


def test_the_readme_shows_commands():
    assert len(shown(ROOT / "README.md")) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_the_pages_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://|mailto:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_continues_a_list_item_after_an_empty_line_is_indented_by_four_spaces(page):
    """With fewer, the site ends the list there."""
    assert re.findall(r"^\n {1,3}\S.*", page.read_text(encoding="utf-8"), re.M) == []
