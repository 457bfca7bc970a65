"""The registry of methods and trainers, and every place that has to agree with it."""

import argparse
import dataclasses
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_invariance import registry
from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.cli.main import load_commands, make_parser
from nnunet_invariance.cli.pretrain import add_parser
from nnunet_invariance.errors import OptionError
from nnunet_invariance.registry import ANY_METHOD, MethodEntry, TrainerEntry
from nnunet_invariance.trainers import BASES
from nnunet_invariance.weights.checkpoint import read_metadata
from nnunet_invariance.weights.locate import SHIPPED

ROOT = Path(__file__).parents[1]
OTHER = MethodEntry("other", "other_package.method", "Other", "0000.00000", "OtherTrainer", "other_package.trainer")


@pytest.fixture
def own_registry(monkeypatch):
    """A registry whose changes end with the test."""
    registry.methods()  # the entry points are loaded
    monkeypatch.setattr(registry, "_methods", registry.methods())
    find_trainer.cache_clear()
    yield
    find_trainer.cache_clear()


def test_the_registry_imports_the_standard_library_only():
    code = (
        "import sys; before = set(sys.modules)\n"
        "from nnunet_invariance import registry; registry.trainers(); registry.pretrain_methods()\n"
        "tops = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(tops - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "['nnunet_invariance']\n", done.stderr


@pytest.mark.parametrize("entry", registry.METHODS, ids=lambda entry: entry.name)
def test_an_entry_agrees_with_its_class(entry):
    kind = entry.load()
    assert (kind.__name__, kind.__module__, kind.name) == (entry.class_name, entry.module, entry.name)
    assert f"arXiv {entry.arxiv}" in kind.citation
    fields = {field.name for field in dataclasses.fields(kind.options_class)}
    assert {flag.field for flag in entry.flags} <= fields
    assert set(entry.network_presets) == set(kind.network_presets)


@pytest.mark.parametrize("entry", registry.trainers().values(), ids=lambda entry: entry.name)
def test_a_trainer_entry_agrees_with_its_class(entry):
    trainer = entry.load()
    assert trainer.__name__ == entry.name
    assert hasattr(trainer, "scratch") == entry.has_scratch_twin
    if entry.method is not None:
        assert trainer.method == entry.method
    if entry.method not in (None, ANY_METHOD):
        method = registry.get_method(entry.method)
        assert trainer.dimensions == method.dimensions
        assert getattr(trainer, "least_channels", 1) == method.least_channels


def test_every_method_and_every_trainer_has_an_entry():
    """A module in the folder of methods or trainers that defines a class of this kind without an entry is found."""
    methods = {(entry.module.rsplit(".", 1)[-1], entry.class_name) for entry in registry.METHODS}
    found = set()
    for file in (ROOT / "nnunet_invariance/pretraining/methods").glob("*.py"):
        found |= {(file.stem, name) for name in re.findall(r"^class (\w+)\((?:Method|PUIR)\)", file.read_text(), re.M)}
    assert found == methods
    defined = {
        name
        for file in (ROOT / "trainers").glob("*.py")
        for name in re.findall(r"^class (\w+Trainer\w*)\(", file.read_text(), re.M)
    }
    bases = {*BASES}
    assert defined - bases == set(registry.trainers())


def test_trainer_names_are_parsed():
    parsed = registry.parse_trainer_name("AliceTrainer_scratch_50epochs")
    assert (parsed.entry.name, parsed.scratch, parsed.epochs) == ("AliceTrainer", True, 50)
    assert registry.parse_trainer_name("BaselineTrainer_scratch") is None
    assert registry.parse_trainer_name("nnUNetTrainer") is None
    assert registry.method_of_trainer("TransferTrainer_2epochs") == ANY_METHOD
    assert registry.method_of_trainer("ICMSegTrainer") is None


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(OptionError, match=r"no pre-training method 'alcie'; expected one of alice, .* mean 'alice'\?"):
        registry.get_method("alcie")


def test_a_method_of_another_package_is_registered_with_its_trainer(own_registry, monkeypatch):
    registry.register(OTHER)
    registry.register(OTHER)
    assert registry.get_method("other") == OTHER
    assert "other" in registry.pretrain_methods()
    assert registry.trainer_for_weights("other") == "OtherTrainer"
    assert registry.trainers()["OtherTrainer"] == TrainerEntry("OtherTrainer", OTHER.trainer_module, method="other")
    trainer = type("OtherTrainer", (), {})
    monkeypatch.setitem(sys.modules, OTHER.trainer_module, SimpleNamespace(OtherTrainer=trainer))
    assert find_trainer("OtherTrainer") is trainer
    assert find_trainer("OtherTrainer_scratch").scratch


@pytest.mark.parametrize("taken", [{"name": "mae"}, {"trainer": "MAETrainer"}, {"trainer": "BaselineTrainer"}])
def test_a_name_that_is_taken_is_refused(own_registry, taken):
    with pytest.raises(OptionError, match=f"{next(iter(taken.values()))}.*already registered"):
        registry.register(dataclasses.replace(OTHER, **taken))


def test_an_entry_that_names_no_class_is_refused_when_it_is_loaded():
    entry = registry.get_method("mae")
    for changes, message in (
        ({"class_name": "Mae"}, r"of the method 'mae' names .*\.mae\.Mae, but the module has no 'Mae'. Correct"),
        ({"module": f"{entry.module}_old"}, r"but there is no module '.*\.mae_old'"),
        ({"module": "no_such_package.mae"}, "but there is no module 'no_such_package.mae'"),
    ):
        with pytest.raises(OptionError, match=message):
            dataclasses.replace(entry, **changes).load()
    with pytest.raises(OptionError, match=r"of the trainer 'MAETrainer' .* there is no module ''"):
        TrainerEntry("MAETrainer", "").load()


def test_a_missing_dependency_of_an_entry_is_named_itself(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        TrainerEntry("SomeTrainer", "needs_more").load()


def test_entry_points_are_loaded_and_a_broken_one_is_left_out(own_registry, monkeypatch, caplog):
    def broken():
        raise ImportError("no module named other_package")

    points = [SimpleNamespace(name="a", load=broken), SimpleNamespace(name="b", load=lambda: OTHER)]
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: points if group == registry.ENTRY_POINTS else []
    )
    registry._load_entry_points.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert registry.get_method("other") == OTHER
    assert "the method 'a'" in caplog.text


def rows(page, heading):
    """The cells of the rows of a page's table below the row ``heading``."""
    lines = (ROOT / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading)) + 2
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]


def test_the_table_of_methods_agrees():
    listed = {}
    for name, trainer, paper, networks, channels, _ in rows("docs/pretraining.md", "| method |"):
        paper_id = re.search(r"\[([\d.]+)\]\(https://arxiv.org/abs/([\d.]+)\)", paper)
        assert paper_id[1] == paper_id[2]
        listed[name.strip("`")] = (trainer.strip("`"), paper_id[1], tuple(networks.split(", ")), int(channels))
    assert listed == {
        name: (entry.trainer, entry.arxiv, entry.networks, entry.least_channels)
        for name, entry in registry.pretrain_methods().items()
    }


def test_the_table_of_trainers_agrees():
    listed = {}
    for cell, text, dimensions in rows("README.md", "| trainer |"):
        for name in re.findall(r"`(\w+Trainer\w*)`", cell):
            listed[name] = (text, dimensions)
    assert set(listed) == set(registry.trainers())
    for name, (text, dimensions) in listed.items():
        trainer = registry.trainers()[name]
        found = tuple(int(d) for d in re.findall(r"(\d)-D", dimensions))
        assert set(found) == set(getattr(trainer.load(), "dimensions", ()) or (2, 3)), name
        if trainer.method not in (None, ANY_METHOD):
            entry = registry.get_method(trainer.method)
            assert f"arxiv.org/abs/{entry.arxiv}" in text, name
            assert ("two channels" in dimensions) == (entry.least_channels == 2)


@pytest.mark.parametrize("entry", registry.METHODS, ids=lambda entry: entry.name)
def test_the_command_that_uses_the_weights_is_accepted(entry):
    parser = make_parser(load_commands())
    names = {"dataset": "4", "configuration": "3d_fullres", "plans": "nnUNetPlans", "file": "FILE"}
    words = entry.next_command.format(**names).split()
    assert vars(parser.parse_args(words))["dataset"] == "4"  # a command that is refused ends the test


def test_the_command_offers_the_methods_and_their_flags():
    """The choices and flags of ``pretrain`` are those of the registry."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    choices = parser._subparsers._group_actions[0].choices["pretrain"]
    actions = {flag: action for action in choices._actions for flag in (action.option_strings or [action.dest])}
    assert actions["method"].choices == list(registry.pretrain_methods())
    for name, entry in registry.pretrain_methods().items():
        for flag in entry.flags:
            assert name in actions[flag.name].help
            assert tuple(actions[flag.name].choices or ()) == flag.choices
            options = entry.load().options_class
            if flag.choices:  # every choice is a value of the option
                for choice in flag.choices:
                    options(**{flag.field: choice})
        for preset in entry.network_presets:
            assert preset in actions["--network"].help


def test_only_methods_with_shipped_weights_ship_some():
    shipped = {read_metadata(path)["method"] for path in SHIPPED.glob("*.safetensors")}
    assert shipped == {name for name, entry in registry.methods().items() if entry.has_shipped_weights}
