"""Plural forms and spelling suggestions for messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def counted(number: int, singular: str, plural: str = "") -> str:
    """Format a number with its noun in the singular or plural.

    >>> counted(1, "case"), counted(2, "case"), counted(0, "class", "classes")
    ('1 case', '2 cases', '0 classes')
    """
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest the most similar known word, as a sentence with a leading space; empty if none is similar.

    >>> did_you_mean("pretrian", ["pretrain", "weights"])
    " Did you mean 'pretrain'?"
    """
    near = get_close_matches(word, list(known), 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def contradiction(folder: object, name: str, now: object, before: object) -> str:
    """The message about a flag that contradicts the run in ``folder``, which ``--c`` continues.

    >>> print(contradiction("unet", "--steps", 10, 20)[:60])
    --c: --steps is 10, but the run in unet was started with 20.
    """
    msg = f"--c: {name} is {now}, but the run in {folder} was started with {before}. "
    return f"{msg}Omit it to continue that run, or start anew without --c."
