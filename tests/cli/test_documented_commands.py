"""The pages: the parser accepts every command of README.md and docs/, links lead somewhere, and lists stay whole."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from nnunet_invariance.cli.main import COMMANDS, make_parser
from nnunet_invariance.pretraining.engine.method import load_method
from nnunet_invariance.pretraining.engine.settings import make_method_options, parse_settings
from nnunet_invariance.registry import get_method

ROOT = Path(__file__).parents[2]
#: Words that stand for a name, and the method that docs/add-a-method.md adds.
NAMES = {"METHOD": "alice", "IMPORTER": "alice", "consistency": "alice"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


def shown(page: Path) -> list[str]:
    """The commands in the code blocks of a page, continuation lines joined, comments removed."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    found = re.findall(r"^(?:    |\t)+.*?\b(?:nnunet-invariance|-m nnunet_invariance) (.+)$", text, re.M)
    return [re.split(r"\s+#|\s{4,}", line)[0] for line in found]


def example(command: str) -> list[str]:
    """The words of a command with its optional parts, the first of its alternatives, and names in place of METHOD."""
    text = re.sub(r"\s>\s.*|\.\.\.|[\[\]]", "", command)
    words = [word.split("|")[0] for word in shlex.split(text)]
    return [NAMES.get(word, word) for word in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_pages_are_accepted(page, capsys):
    parser = make_parser({name: importlib.import_module(f"nnunet_invariance.cli.{name}") for name in COMMANDS})
    refused = {}
    for command in shown(page):
        try:
            parser.parse_args(example(command))
        except SystemExit as stop:
            if stop.code:  # not 0, as after --help
                refused[command] = capsys.readouterr().err
    assert refused == {}


def test_pretraining_accepts_the_options_that_the_pages_set():
    parser = make_parser({name: importlib.import_module(f"nnunet_invariance.cli.{name}") for name in COMMANDS})
    checked = 0
    for command in (command for page in PAGES for command in shown(page) if command.startswith("pretrain ")):
        args = parser.parse_args([word for word in example(command) if word != "--help"])
        settings = [setting for setting in args.settings if setting != "key=value"]
        kind = load_method(get_method(args.method))
        make_method_options(kind, parse_settings(settings, kind.options_class).method)
        checked += bool(settings)
    assert checked > 1


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
