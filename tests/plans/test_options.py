"""The options block: defaults, ranges, and names that are wrong."""

import dataclasses
import json

import pytest

from nnunet_invariance.errors import OptionError
from nnunet_invariance.plans.options import BaselineOptions, TrainerOptions, read_options


def block(**fields) -> dict:
    return {"patch_size": [32, 32, 32], "nnunet_invariance": fields}


def test_no_block_gives_the_stated_defaults() -> None:
    assert read_options(TrainerOptions, {}).to_dict() == {
        "checkpoint": None,
        "min_coverage": 1.0,
        "transfer": "encoder",
        "branch": "teacher",
        "aux": "info_nce",
        "aux_weight": 0.1,
        "aux_ramp": 0.1,
        "temperature": 0.2,
        "positions": 256,
        "encoder_lr_factor": 1.0,
        "warmup": 0.0,
        "frozen_epochs": 0,
        "iterations_per_epoch": None,
        "val_iterations_per_epoch": None,
        "seed": None,
    }
    assert read_options(BaselineOptions, {}).to_dict().keys() == {
        "iterations_per_epoch",
        "val_iterations_per_epoch",
        "seed",
    }


def test_options_survive_json_and_come_back() -> None:
    options = read_options(TrainerOptions, block(seed=3, transfer="encoder+decoder", aux="none", min_coverage=0.5))
    assert (options.seed, options.transfer, options.aux, options.min_coverage) == (3, "encoder+decoder", "none", 0.5)
    assert read_options(TrainerOptions, block(**json.loads(json.dumps(options.to_dict())))) == options


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainerOptions().seed = 1


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
        ("aux", None, "'info_nce', 'none'"),
        ("aux_weight", float("inf"), r"\[0, 100\]"),
        ("aux_ramp", 2, r"\[0, 1\]"),
        ("temperature", 0, r"\(0, 10\]"),
        ("positions", 1, "a whole number of at least 2"),
        ("positions", 256.0, "a whole number of at least 2"),
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
        read_options(TrainerOptions, block(**{field: value}))
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
def test_ends_of_ranges_are_allowed(field: str, value) -> None:
    assert getattr(read_options(TrainerOptions, block(**{field: value})), field) == value


@pytest.mark.parametrize("cls", [TrainerOptions, BaselineOptions])
def test_unknown_names_get_the_nearest_one(cls) -> None:
    with pytest.raises(
        OptionError, match=r"Unknown option 'iterations_per_epochs'.*Did you mean 'iterations_per_epoch'"
    ):
        read_options(cls, block(iterations_per_epochs=3))
    with pytest.raises(OptionError, match=r"Unknown option 'xyzzy'.*Known options: aux, .*warmup"):
        read_options(cls, block(xyzzy=3))


def test_baseline_passes_over_what_only_trainers_know() -> None:
    assert read_options(BaselineOptions, block(seed=3, aux_weight=0.5)) == BaselineOptions(seed=3)
    with pytest.raises(OptionError, match="'seed'"):
        read_options(BaselineOptions, block(seed=-3, aux_weight=0.5))


@pytest.mark.parametrize("wrong", [None, [], "fast", 3])
def test_the_block_must_be_an_object(wrong) -> None:
    with pytest.raises(OptionError, match="expected an object"):
        read_options(TrainerOptions, {"nnunet_invariance": wrong})
