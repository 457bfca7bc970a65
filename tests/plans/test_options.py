"""The options block: defaults, ranges, and unknown names."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path

import pytest

from nnunet_invariance.errors import OptionError
from nnunet_invariance.plans.block import OPTIONS, check_block, read_options
from nnunet_invariance.plans.options import (
    AuxiliaryLossOptions,
    BaselineOptions,
    DenseContrastOptions,
    PretrainedOptions,
)
from nnunet_invariance.plans.unlabelled import UnlabelledOptions
from nnunet_invariance.registry import trainers


def block(**fields) -> dict:
    return {"patch_size": [32, 32, 32], "nnunet_invariance": fields}


def test_no_block_gives_the_stated_defaults() -> None:
    assert read_options(DenseContrastOptions, {}).to_dict() == {
        "mirroring": "auto",
        "precision": "auto",
        "augmentation": "nnunet",
        "head": "auto",
        "head_start": "probe",
        "checkpoint": None,
        "min_coverage": 1.0,
        "transfer": "encoder",
        "branch": None,
        "aux": True,
        "aux_weight": 0.1,
        "aux_ramp": 0.1,
        "temperature": 0.2,
        "num_positions": 256,
        "encoder_lr_factor": 1.0,
        "warmup": 0.0,
        "frozen_epochs": 0,
        "iterations_per_epoch": None,
        "val_iterations_per_epoch": None,
        "seed": None,
        "unlabelled": None,
    }


@pytest.mark.parametrize(
    ("cls", "base", "own"),
    [
        (
            BaselineOptions,
            None,
            {
                "iterations_per_epoch",
                "val_iterations_per_epoch",
                "seed",
                "mirroring",
                "precision",
                "augmentation",
                "unlabelled",
            },
        ),
        (
            PretrainedOptions,
            BaselineOptions,
            {"checkpoint", "min_coverage", "transfer", "branch", "encoder_lr_factor", "warmup", "frozen_epochs"}
            | {"head", "head_start"},
        ),
        (AuxiliaryLossOptions, PretrainedOptions, {"aux", "aux_weight", "aux_ramp"}),
        (DenseContrastOptions, AuxiliaryLossOptions, {"temperature", "num_positions"}),
    ],
)
def test_each_base_adds_only_what_its_trainer_uses(cls, base, own) -> None:
    names = {item.name for item in dataclasses.fields(cls)}
    assert names - ({item.name for item in dataclasses.fields(base)} if base else set()) == own


def with_subclasses(cls: type) -> set[type]:
    return {cls}.union(*map(with_subclasses, cls.__subclasses__()))


def test_every_options_class_is_listed_and_every_field_is_documented() -> None:
    of_trainers = {entry.load().options_class for entry in trainers().values()}
    defined = {cls for cls in with_subclasses(BaselineOptions) if cls.__module__.startswith("nnunet_invariance.plans.")}
    assert set(OPTIONS) == defined
    assert of_trainers <= defined
    for cls in (*OPTIONS, UnlabelledOptions):
        for description in cls.describe():
            assert description.doc.endswith("."), (cls.__name__, description.name)
            assert description.expected, (cls.__name__, description.name)


def test_the_page_lists_every_option_with_its_default_and_its_range() -> None:
    page = (Path(__file__).parents[2] / "docs/trainers.md").read_text()
    assert options_tables() in page, "copy what `python -m tests.plans.test_options` prints into docs/trainers.md"


def options_tables() -> str:
    """One table per options class, of the fields that it adds or changes."""
    lines: list[str] = []
    for cls in OPTIONS:
        bases = [base for base in cls.__mro__[1:] if base in OPTIONS]
        inherited = set(bases[0].describe()) if bases else set()
        of_trainers = [f"`{name}`" for name, entry in trainers().items() if entry.load().options_class is cls]
        subject = " and ".join(of_trainers)
        addition = f", in addition to those of `{bases[0].__name__}`" if bases else ""
        used = f"Options of {subject}{addition}." if subject else f"Options of a base class{addition}."
        lines += options_table(cls, used, inherited)
    return "\n".join(lines + options_table(UnlabelledOptions, 'Options in the object `"unlabelled"`.'))


def options_table(cls, subject: str, inherited: Collection = ()) -> list[str]:
    """Heading, subject and table of the options of a class that it does not inherit."""
    lines = [f"### {cls.__name__}", "", subject, "", "| option | default | range | meaning |", "|---|---|---|---|"]
    for option in cls.describe():
        if option not in inherited:
            default = json.dumps(option.default)
            lines.append(f"| `{option.name}` | `{default}` | {option.expected} | {option.doc} |")
    return [*lines, ""]


def test_a_plans_copy_is_checked_against_the_options_of_every_trainer() -> None:
    check_block(block(seed=3, style="gin", weight_invariance=0.5, modality_dropout=0.1))
    with pytest.raises(OptionError, match="'weight_invariance'"):
        check_block(block(weight_invariance=-1))


def test_options_can_be_written_to_json_and_read_again() -> None:
    options = read_options(DenseContrastOptions, block(seed=3, transfer="encoder+decoder", aux=False, min_coverage=0.5))
    assert (options.seed, options.transfer, options.aux, options.min_coverage) == (3, "encoder+decoder", False, 0.5)
    assert read_options(DenseContrastOptions, block(**json.loads(json.dumps(options.to_dict())))) == options


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DenseContrastOptions().seed = 1


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("checkpoint", 3, "the path of a checkpoint, or null"),
        ("checkpoint", " ", "the path of a checkpoint, or null"),
        ("min_coverage", 1.01, r"a number in \[0, 1\]"),
        ("min_coverage", -0.1, r"a number in \[0, 1\]"),
        ("min_coverage", "1", r"a number in \[0, 1\]"),
        ("min_coverage", True, r"a number in \[0, 1\]"),
        ("min_coverage", float("nan"), r"a number in \[0, 1\]"),
        ("min_coverage", None, r"a number in \[0, 1\]"),
        ("transfer", "decoder", r"'encoder', 'encoder\+decoder'"),
        ("branch", ["teacher"], "'teacher', 'student'"),
        ("aux", "none", "true or false"),
        ("aux_weight", float("inf"), r"\[0, 100\]"),
        ("aux_ramp", 2, r"\[0, 1\]"),
        ("temperature", 0, r"\(0, 10\]"),
        ("num_positions", 1, "a whole number of at least 2"),
        ("num_positions", 256.0, "a whole number of at least 2"),
        ("encoder_lr_factor", -1, r"\[0, 10\]"),
        ("warmup", 1.5, r"\[0, 1\]"),
        ("frozen_epochs", -1, "a whole number of at least 0"),
        ("frozen_epochs", None, "a whole number of at least 0"),
        ("iterations_per_epoch", 0, "a whole number of at least 1, or null"),
        ("val_iterations_per_epoch", 2.5, "a whole number of at least 1, or null"),
        ("seed", -1, "from 0 to 4294967295"),
        ("seed", 2**32, "from 0 to 4294967295"),
        ("seed", "1", "from 0 to 4294967295"),
    ],
)
def test_wrong_values_name_field_value_and_range(field: str, value, expected: str) -> None:
    with pytest.raises(OptionError, match=f"'{field}'.*expected .*{expected}") as error:
        read_options(DenseContrastOptions, block(**{field: value}))
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_coverage", 0),
        ("min_coverage", 1),
        ("aux_ramp", 0),
        ("encoder_lr_factor", 1),
        ("frozen_epochs", 0),
        ("iterations_per_epoch", 1),
        ("seed", 2**32 - 1),
        ("seed", 0),
    ],
)
def test_limits_of_ranges_are_allowed(field: str, value) -> None:
    assert getattr(read_options(DenseContrastOptions, block(**{field: value})), field) == value


@pytest.mark.parametrize("cls", [DenseContrastOptions, BaselineOptions])
def test_unknown_names_are_refused_with_the_nearest_name(cls) -> None:
    with pytest.raises(
        OptionError, match=r"Unknown option 'iterations_per_epochs'.*Did you mean 'iterations_per_epoch'"
    ):
        read_options(cls, block(iterations_per_epochs=3))
    with pytest.raises(OptionError, match=r"Unknown option 'xyzzy'.*Known options: augmentation, aux, .*warmup"):
        read_options(cls, block(xyzzy=3))


def test_baseline_ignores_options_of_other_trainers() -> None:
    assert read_options(BaselineOptions, block(seed=3, aux_weight=0.5)) == BaselineOptions(seed=3)
    with pytest.raises(OptionError, match="'seed'"):
        read_options(BaselineOptions, block(seed=-3, aux_weight=0.5))


@pytest.mark.parametrize("wrong", [None, [], "fast", 3])
def test_the_block_must_be_an_object(wrong) -> None:
    with pytest.raises(OptionError, match="expected an object"):
        read_options(DenseContrastOptions, {"nnunet_invariance": wrong})


if __name__ == "__main__":
    print(options_tables())
