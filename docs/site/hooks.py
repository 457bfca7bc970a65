"""Hooks of mkdocs: links to files outside of docs/, and generated pages of the reference.

A picture outside of docs/ becomes part of the site. A link to another file leads to the repository on GitHub if
GITHUB_REPOSITORY names it (as in a workflow), and is plain text otherwise.
"""

import importlib
import os
import re
from html import escape, unescape
from pathlib import Path
from statistics import mean
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PICTURES = {".png", ".svg", ".jpg"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
#: A name that needs less than half of a line on a phone.
SHORT_CODE = re.compile(r"<code>([^<]{1,22})</code>")
TABLE = re.compile(r"<table>(.*?)</table>", re.S)
ROW = re.compile(r"<tr\b.*?</tr>", re.S)
CELL = re.compile(r"<(t[hd])\b([^>]*)>(.*?)</\1>", re.S)
#: A column of explanations: the least mean length of its texts, and the largest of other columns relative to it.
PROSE, OTHERS = 30, 0.75
#: Most of the short columns that fit beside each other on a phone.
MOST_SHORT = 3
#: A picture, and the ending of the name of its form for a phone.
PICTURE = re.compile(r'<img ([^>]*?)src="([^"]+)"([^>]*)>')
NARROW = "_narrow.png"
SEARCH = 'data-md-component="search" role="dialog"'
#: A block of code that is not highlighted: commands, and what they print.
COMMANDS = re.compile(r"<pre><code>(.*?)</code></pre>", re.S)
#: A flag within them.
FLAG = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
#: Packages whose public names are in the reference of the Python API.
PACKAGES = (
    "losses",
    "augmentation.interventions",
    "synthesis",
    "networks",
    "weights",
    "pretraining",
    "probing",
    "evaluation",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the pictures outside of docs/ that pages show."""
    for name, content in (("reference/api.md", api_page()), ("reference/commands.md", commands_page())):
        files.append(File.generated(config, name, content=content))
    for page in list(files.documentation_pages()):
        source = Path(config.docs_dir, page.src_uri)
        for _, _, target, _ in LINK.findall(source.read_text(encoding="utf-8")) if source.is_file() else ():
            path = (source.parent / target).resolve()
            if outside(path, config) and path.suffix in PICTURES and path.is_file():
                uri = picture_uri(path)
                if files.get_file_from_path(uri) is None:
                    files.append(File.generated(config, uri, content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Rewrite the links that leave docs/."""
    folder = Path(config.docs_dir, page.file.src_uri).parent

    def rewrite(match: re.Match[str]) -> str:
        mark, text, target, anchor = match.groups()
        path = (folder / target).resolve()
        if not outside(path, config):
            return match[0]
        if path.suffix in PICTURES:
            return f"{mark}[{text}]({os.path.relpath(picture_uri(path), Path(page.file.src_uri).parent)})"
        if repository := os.environ.get("GITHUB_REPOSITORY"):
            return (
                f"[{text}](https://github.com/{repository}/tree/main/{path.relative_to(ROOT).as_posix()}{anchor or ''})"
            )
        return text

    return LINK.sub(rewrite, markdown)


def on_page_content(html: str, config: MkDocsConfig, **_: Any) -> str:
    """Keep a short name, for example ``--c``, on one line, mark the lines of commands, and fit tables and pictures."""
    html = COMMANDS.sub(mark_lines, SHORT_CODE.sub(r'<code class="short">\1</code>', html))
    folder = Path(config.docs_dir, "pictures")
    return PICTURE.sub(lambda match: fit_picture(match, folder), TABLE.sub(fit_table, html))


def on_post_page(output: str, **_: Any) -> str:
    """Name the search for a screen reader, which the theme does not."""
    return output.replace(SEARCH, f'{SEARCH} aria-label="Search"')


def on_post_template(output: str, **_: Any) -> str:
    """As for the other pages, for the one that is shown if a page does not exist."""
    return on_post_page(output)


def mark_lines(match: re.Match[str]) -> str:
    """Each line of a block as an element, so that what continues it can be indented; each flag, to keep it whole."""
    text = FLAG.sub(r'<span class="flag">\g<0></span>', match[1].rstrip("\n"))
    lines = "\n".join(f'<span class="line">{line}</span>' for line in text.split("\n"))
    return f"<pre><code>{lines}</code></pre>"


def fit_table(match: re.Match[str]) -> str:
    """A table in a box that scrolls sideways by itself, also with the keyboard.

    If one column has explanations and the others shorter entries, the box is marked: on a phone, the explanation then
    has a line of its own below the other entries of its row, or above them if it is the first.
    """
    rows = [CELL.findall(row) for row in ROW.findall(match[1])]
    columns = list(zip(*rows, strict=True)) if len({len(row) for row in rows}) == 1 else []
    lengths = [mean(len(plain(content)) for _, _, content in column[1:]) for column in columns if len(rows) > 1]
    kind, style, table = "scrolling", "", match[1]
    if 1 < len(lengths) <= MOST_SHORT + 1:
        *others, longest = sorted(lengths)
        if longest > PROSE and others[-1] < OTHERS * longest:
            kind, style = "scrolling stacked", f' style="--short: {len(others)}"'
            table = ROW.sub(lambda row: mark_cell(row[0], lengths.index(longest)), table)
    box = f'<div class="{kind}"{style} tabindex="0" role="group" aria-label="Table">'
    return f"{box}<table>{table}</table></div>"


def plain(content: str) -> str:
    """The text of HTML."""
    return " ".join(unescape(re.sub("<[^>]*>", "", content)).split())


def mark_cell(row: str, number: int) -> str:
    """A row of a table whose cell of that number has the mark of an explanation."""
    found = list(CELL.finditer(row))[number]
    tag = f"<{found[1]} data-prose{found[2]}>"
    return f"{row[: found.start()]}{tag}{found[3]}</{found[1]}>{row[found.end() :]}"


def fit_picture(match: re.Match[str], folder: Path) -> str:
    """A picture that opens in its own size, and on a phone its narrow form if there is one in the folder."""
    before, source, after = match.groups()
    image = f'<img {before}src="{source}"{after}>'
    narrow = Path(source).name.removesuffix(".png") + NARROW
    if (folder / narrow).is_file():
        other = f"{source.rpartition('/')[0]}/{narrow}"
        image = f'<picture><source media="(max-width: 44.9em)" srcset="{other}">{image}</picture>'
    return f'<a href="{source}">{image}</a>'


def outside(path: Path, config: MkDocsConfig) -> bool:
    """Whether a linked file is not in docs/."""
    return not path.is_relative_to(Path(config.docs_dir).resolve())


def picture_uri(path: Path) -> str:
    """Place of an outside picture in the site."""
    return f"pictures/{path.relative_to(ROOT).as_posix().replace('/', '_')}"


def api_page() -> str:
    """The public names of every package, by the module that defines them."""
    parts = [
        "# Python API",
        "",
        "Every name is imported from its package, for example `from nnunet_invariance.losses import PatchInfoNCE`.",
    ]
    for package in PACKAGES:
        module = importlib.import_module(f"nnunet_invariance.{package}")
        parts += ["", f"## nnunet_invariance.{package}", "", (module.__doc__ or "").split("\n")[0], ""]
        for name in module.__all__:
            where = getattr(getattr(module, name), "__module__", module.__name__)
            parts += [f"::: {where}.{name}", "    options: {heading_level: 3}", ""]
    return "\n".join(parts)


def commands_page() -> str:
    """Usage, description and arguments of every command, from the parser of the command line."""
    from nnunet_invariance.cli.main import COMMANDS, make_parser

    parser = make_parser({name: importlib.import_module(f"nnunet_invariance.cli.{name}") for name in COMMANDS})
    parts = [
        "# Commands",
        "",
        "`nnunet-invariance COMMAND --help` prints the same; `pretrain METHOD --help` also lists",
    ]
    parts += ["the options of the method that `--set` takes."]
    for words, sub_parser in sub_parsers(parser):
        usage = " ".join(sub_parser.format_usage().removeprefix("usage: ").split())
        parts += ["", f"## {words}", "", f"    {usage}", "", cell(sub_parser.description or ""), ""]
        if rows := arguments(sub_parser):
            parts += ["| argument | meaning |", "|---|---|", *rows]
    return "\n".join(parts)


def arguments(parser: Any) -> list[str]:
    """A row for each argument of a parser, or for each of its sub-commands."""
    formatter, rows = parser._get_formatter(), []
    for action in parser._actions:
        if type(action).__name__ == "_SubParsersAction":
            rows += [f"| `{choice.dest}` | {cell(choice.help or '')} |" for choice in action._choices_actions]
        elif "--help" not in action.option_strings:
            text = formatter._expand_help(action)
            name = formatter._format_action_invocation(action)
            if action.choices:
                name = ", ".join(action.option_strings) or action.dest
                text = f"{', '.join(action.choices)}: {text}"
            rows.append(f"| `{name}` | {cell(text)} |")
    return rows


def cell(text: str) -> str:
    """Plain text as Markdown."""
    return re.sub(r"([_*\[\]])", r"\\\1", escape(text, quote=False)).replace("|", "&#124;")


def sub_parsers(parser: Any, words: str = "") -> list[tuple[str, Any]]:
    """Every command with its sub-commands, by name."""
    found = []
    for action in parser._actions:
        for name, below in (action.choices or {}).items() if type(action).__name__ == "_SubParsersAction" else ():
            full = f"{words} {name}".strip()
            found += [(full, below), *sub_parsers(below, full)]
    return found
