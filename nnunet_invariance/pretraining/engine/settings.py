"""Typed options from ``field=value`` command-line arguments, and from the defaults of a method."""

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nnunet_invariance.common.options import Options
from nnunet_invariance.errors import OptionError
from nnunet_invariance.pretraining.engine.method import Method
from nnunet_invariance.pretraining.engine.options import LoopOptions, MethodOptions

SWITCHES = {"0": False, "1": True, "false": False, "true": True}
#: The key of a preset in a mapping of options.
PRESET = "preset"
#: The value with which a default is chosen automatically, None in Python.
AUTO = "auto"


@dataclass(frozen=True)
class Settings:
    """Typed values by field: those of the loop, and those of the method (with :data:`PRESET`)."""

    loop: dict[str, Any]
    method: dict[str, Any]


def parse_settings(arguments: Sequence[str], options_class: type[MethodOptions] = MethodOptions) -> Settings:
    """Sort ``field=value`` arguments over the options of the loop and of a method, and convert them.

    Raises:
        OptionError: names the argument, what is wrong with it, and the nearest field.

    >>> parse_settings(["epochs=5", "lr=1e-3"]).loop
    {'epochs': 5, 'lr': 0.001}
    """
    hints = {kind: _field_types(kind) for kind in (LoopOptions, options_class)}
    known = [*hints[LoopOptions], *hints[options_class], *([PRESET] if options_class.presets else [])]
    settings = Settings({}, {})
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            msg = f"--set {argument}: expected field=value with a field of {', '.join(sorted(known))}.{hint}"
            raise OptionError(msg)
        if name in hints[LoopOptions]:
            settings.loop[name] = _convert(argument, text, LoopOptions, hints[LoopOptions][name])
        else:
            settings.method[name] = (
                text if name == PRESET else _convert(argument, text, options_class, hints[options_class][name])
            )
    return settings


def _field_types(kind: type[Options]) -> dict[str, type]:
    """The type of each field: that of a Literal's values, and of an optional field's value."""
    fields, result = {field.name for field in dataclasses.fields(kind)}, {}
    for name, hint in get_type_hints(kind).items():
        if name not in fields:
            continue
        if get_origin(hint) in (Union, types.UnionType):
            hint = next(part for part in get_args(hint) if part is not type(None))
        result[name] = str if get_origin(hint) is Literal else hint
    return result


def _convert(argument: str, text: str, options: type[Options], kind: type) -> Any:
    default = {field.name: field.default for field in dataclasses.fields(options)}[argument.partition("=")[0]]
    if text == AUTO and default is None:
        return None
    try:
        return SWITCHES[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise OptionError(f"--set {argument}: {text!r} is not a valid {kind.__name__}. Correct it.") from error


def make_method_options(
    kind: type[Method], given: MethodOptions | Mapping[str, Any] | None, network: str = ""
) -> MethodOptions:
    """The options of a method: those that are given, or the defaults with the fields of a mapping changed.

    Args:
        network: class name of the planned network; it selects the preset if none is given.

    Raises:
        OptionError: a field is unknown, a value is out of range, or the options are those of another method.
    """
    wanted = kind.options_class
    if isinstance(given, MethodOptions):
        if not isinstance(given, wanted):
            msg = f"The options of the method {kind.name!r} are {type(given).__name__}; expected {wanted.__name__}."
            raise OptionError(f"{msg} Give options of this class.")
        return given
    changes = dict(given or {})
    if unknown := sorted(changes.keys() - {*_field_types(wanted), PRESET}):
        msg = (
            f"The method {kind.name!r} has no option {unknown[0]!r}; expected one of {', '.join(_field_types(wanted))}."
        )
        raise OptionError(f"{msg} Correct the name.")
    preset = changes.pop(PRESET, wanted.preset_of_network.get(network))
    return wanted(**changes) if preset is None else wanted.from_preset(preset, **changes)


def make_loop_options(kind: type[Method], given: LoopOptions | Mapping[str, Any] | None) -> LoopOptions:
    """The options of the loop, with the defaults of the method where a value is None.

    Raises:
        OptionError: a value is out of range.
    """
    options = given if isinstance(given, LoopOptions) else LoopOptions(**(given or {}))
    return options.resolve(kind.loop_defaults)
