"""Metadata of a checkpoint: the keys, their types, and their checksum."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

FORMAT = 2
#: Key of the safetensors header with the metadata as JSON, and key with the SHA-256 of this JSON text.
KEY, CHECKSUM_KEY = "nnunet_invariance", "nnunet_invariance_sha256"
ARCHITECTURE_KEYS = ("network_class_name", "arch_kwargs", "_kw_requires_import", "input_channels", "num_classes")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(accepts, value))


def _or_none(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or accepts(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_architecture(value: Any) -> bool:
    complete = isinstance(value, Mapping) and all(key in value for key in ARCHITECTURE_KEYS)
    return complete and _is_text(value["network_class_name"]) and _is_mapping(value["arch_kwargs"])


_TEXT, _COUNT = (_is_text, "a text"), (_is_count, "a whole number of at least 0")
_TEXTS, _MAPPING = (_list_of(_is_text), "a list of texts"), (_is_mapping, "a mapping")
_TEXT_OR_NULL = (_or_none(_is_text), "a text or null")
#: Required keys; whether a value is accepted, and what is accepted in words.
REQUIRED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method": _TEXT,
    "finished": (lambda value: isinstance(value, bool), "true or false"),
    "step": _COUNT,
    "total_steps": _COUNT,
    "architecture": (_is_architecture, f"a mapping with {', '.join(ARCHITECTURE_KEYS)}"),
    "channel_names": _TEXTS,
    "normalization_schemes": _TEXTS,
    "spacing": (_or_none(_list_of(_is_number)), "a list of numbers or null"),
    "patch_size": (_list_of(_is_count), "a list of whole numbers"),
    "dataset_name": _TEXT,
    "plans_name": _TEXT,
    "configuration": _TEXT,
    "data_identifier": _TEXT,
    "plans": _MAPPING,
    "pretrained": _TEXTS,
    "options": _MAPPING,
    "manifest_sha256": _TEXT_OR_NULL,
    "versions": _MAPPING,
    "citation": _TEXT,
    "parent_sha256": _TEXT_OR_NULL,
}
#: Keys that :func:`.save_checkpoint` adds.
ADDED = {"created": _TEXT, "sha256": _TEXT}


def problem_of(metadata: Mapping[str, Any], added: bool) -> str | None:
    """What is wrong with metadata, in words; None if nothing is.

    Args:
        added: whether the keys that :func:`.save_checkpoint` adds must be there.

    >>> problem_of({"method": 3}, added=False)
    'lack finished, step, total_steps, architecture, channel_names, normalization_schemes, spacing, patch_size, ...'
    """
    schema = {**REQUIRED, **ADDED} if added else REQUIRED
    if lacking := [key for key in schema if key not in metadata]:
        shown = lacking if len(lacking) <= 8 else [*lacking[:8], "..."]
        return f"lack {', '.join(shown)}"
    for key, (accepts, expected) in schema.items():
        if not accepts(metadata[key]):
            return f"have {key!r}: {_short(metadata[key])}; expected {expected}"
    return None


def to_header(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The metadata as entries of a safetensors header, with their checksum.

    >>> to_header({"a": 1})[KEY]
    '{"a": 1}'
    """
    text = json.dumps(metadata)
    return {KEY: text, CHECKSUM_KEY: _sha256(text)}


def from_header(header: Mapping[str, str]) -> dict[str, Any]:
    """The metadata in a safetensors header.

    Raises:
        ValueError: says what is wrong: no metadata of ours, another format, a wrong checksum, a missing key or a wrong
            type.
    """
    if KEY not in header:
        what = f"it is a safetensors file without our metadata (header key {KEY!r})"
        raise ValueError(f"{what}; `nnunet-invariance weights import` converts files of other tools")
    try:
        metadata = json.loads(header[KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its metadata are not JSON ({str(error) or type(error).__name__})") from error
    version = metadata.get("format") if isinstance(metadata, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"it has checkpoint format {_short(version)}, but this version of nnunet-invariance reads format {FORMAT}"
        )
    if header.get(CHECKSUM_KEY) != _sha256(header[KEY]):
        raise ValueError("its metadata do not match their checksum")
    if problem := problem_of(metadata, added=True):
        raise ValueError(f"its metadata {problem}")
    return metadata


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
