"""The stock nnU-Net commands find our names; the hook is quick, harmless and can be switched off."""

import ast
import importlib
import json
import os
import pickle
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnunet_invariance import _discovery, registry

ROOT = Path(__file__).parents[1]
NORMALIZATION = "nnunetv2.preprocessing.normalization"
PLANNING = "nnunetv2.experiment_planning"


def run_python(code: str, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a new interpreter that sees the checkout, as a spawned process of a user would."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("AliceTrainer", {}),
        ("AliceTrainer_scratch", {"scratch": True}),
        ("AliceTrainer_1epoch", {"length_in_epochs": 1}),
        ("AliceTrainer_scratch_50epochs", {"scratch": True, "length_in_epochs": 50}),
        ("BaselineTrainer_2epochs", {"length_in_epochs": 2}),
    ],
)
def test_nnunet_resolves_a_name_to_one_class(name, attributes):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    trainer = recursive_find_trainer_class_by_name(name)
    assert trainer is recursive_find_trainer_class_by_name(name)
    assert trainer.__name__ == trainer.__qualname__ == name
    base = recursive_find_trainer_class_by_name(name.split("_")[0])
    assert issubclass(trainer, base)
    changed = {key: vars(trainer)[key] for key in ("scratch", "length_in_epochs") if key in vars(trainer)}
    assert trainer is base or changed == attributes
    assert getattr(importlib.import_module(trainer.__module__), name) is trainer
    assert pickle.loads(pickle.dumps(trainer)) is trainer


@pytest.mark.parametrize(
    "name", ["AliceTrainer_0epochs", "AliceTrainer_05epochs", "AliceTrainer_epochs", "AliceTrainer_5epochs_scratch",
             "AliceTrainer_scratch_scratch", "BaselineTrainer_scratch", "_scratch", "_5epochs", "", "nnUNetTrainer"]
)  # fmt: skip
def test_other_names_are_not_ours(name):
    assert _discovery.find_trainer(name) is None


def test_a_class_pickled_here_loads_in_a_new_process():
    pickled = pickle.dumps(_discovery.find_trainer("AliceTrainer_scratch_7epochs"))
    result = run_python(f"import pickle; print(pickle.loads({pickled!r}).__name__)")
    assert result.stdout.splitlines()[-1:] == ["AliceTrainer_scratch_7epochs"], result.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("AliceTrainr", "AliceTrainer"),
        ("alice", "AliceTrainer"),
        ("AliceTrainer_scrach_50epochs", "AliceTrainer_scratch_50epochs"),
        ("AliceTrainer_50_epochs", "AliceTrainer_50epochs"),
        ("AliceTrainer5ep", "AliceTrainer_5epochs"),
        ("BaseLineTrainer_1epoch", "BaselineTrainer_1epoch"),
    ],
)
def test_nearest_names(typed, meant):
    assert _discovery.nearest_trainers(typed)[0] == meant
    assert _discovery.find_trainer(meant) is not None


def test_the_missing_twin_of_the_baseline_is_answered_with_what_there_is():
    nearest = _discovery.nearest_trainers("BaselineTrainer_scratch")
    assert {"AliceTrainer_scratch", "BaselineTrainer"} <= set(nearest)
    assert "BaselineTrainer_scratch" not in nearest


def test_a_misspelt_name_gets_nnunets_error_and_our_nearest_names():
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with pytest.raises(
        RuntimeError, match=r"Could not find requested nnunet trainer AliceTrainr_5epochs in .*"
    ) as caught:
        recursive_find_trainer_class_by_name("AliceTrainr_5epochs")
    assert "Nearest trainers of nnunet_invariance: AliceTrainer_5epochs" in str(caught.value)


def test_stock_names_and_stock_errors_are_undisturbed():
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    assert recursive_find_trainer_class_by_name("nnUNetTrainer") is nnUNetTrainer
    with pytest.raises(RuntimeError) as caught:
        recursive_find_trainer_class_by_name("nnUNetTrainer_of_nobody")
    assert "nnunet_invariance" not in str(caught.value)


def test_no_name_of_ours_is_a_name_of_nnunet():
    import nnunetv2

    theirs = {
        node.name
        for file in Path(nnunetv2.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    # On nnU-Net's main branch, not yet in a release.
    theirs |= {"PretrainedTrainer", "PretrainedTrainer_150ep", "PretrainedTrainer_Primus"}
    ours = {name for names in _discovery.REGISTRY.values() for name in names} | set(registry.trainers())
    assert "nnUNetTrainer" in theirs
    assert "AliceTrainer" in ours
    assert not ours & theirs


@pytest.fixture
def own_classes(tmp_path, monkeypatch):
    """A module with a planner and a normalisation of ours, registered for the length of a test."""
    (tmp_path / "registered_for_a_test.py").write_text(
        "from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner\n"
        "from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization\n"
        "class PlannerOfOurs(ExperimentPlanner):\n"
        "    def plan_experiment(self):\n"
        "        return {'planned by': type(self).__name__}\n"
        "class ShiftOfOurs(ImageNormalization):\n"
        "    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False\n"
        "    def run(self, image, seg=None):\n"
        "        return image + 1000\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(_discovery.REGISTRY[PLANNING], "PlannerOfOurs", "registered_for_a_test")
    monkeypatch.setitem(_discovery.REGISTRY[NORMALIZATION], "ShiftOfOurs", "registered_for_a_test")
    yield tmp_path
    sys.modules.pop("registered_for_a_test", None)


def test_nnunet_plans_with_a_registered_planner(own_classes, tiny, monkeypatch):
    from nnunetv2.experiment_planning import plan_and_preprocess_api

    planned = []
    plan = plan_and_preprocess_api.plan_experiment_dataset
    monkeypatch.setattr(
        plan_and_preprocess_api, "plan_experiment_dataset", lambda *args: planned.append(plan(*args)) or planned[-1]
    )
    plan_and_preprocess_api.plan_experiments([777], "PlannerOfOurs")
    assert planned[0][0] == {"planned by": "PlannerOfOurs"}


def test_a_spawned_preprocessing_worker_finds_a_registered_normalisation(own_classes, tiny, monkeypatch):
    """The worker is told of the extra name by a `sitecustomize`, and hooked by `import torch` alone."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    (own_classes / "sitecustomize.py").write_text(
        "from nnunet_invariance import _discovery\n"
        f"_discovery.REGISTRY[{NORMALIZATION!r}]['ShiftOfOurs'] = 'registered_for_a_test'\n"
    )
    plans = json.loads(json.dumps(tiny.plans))
    plans["plans_name"] = "nnUNetPlansShift"
    plans["configurations"]["3d_fullres"].update(
        data_identifier="nnUNetPlansShift_3d_fullres", normalization_schemes=["ShiftOfOurs"]
    )
    folder = tiny.preprocessed / tiny.name
    (folder / "nnUNetPlansShift.json").write_text(json.dumps(plans))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(own_classes), str(ROOT))))
    preprocess_dataset(777, "nnUNetPlansShift", ("3d_fullres",), (1,), show_progress_bar=False)
    import blosc2

    written = np.asarray(blosc2.open(str(folder / "nnUNetPlansShift_3d_fullres/case_000.b2nd"))[:])
    assert written.mean() == pytest.approx(1000, abs=200)


def test_the_hook_serves_modules_that_were_imported_before_torch():
    """`nnUNetv2_plan_experiment` imports nnU-Net's finder first and torch later."""
    result = run_python(
        "import nnunetv2.utilities.find_class_by_name as finder, nnunetv2.utilities.find_objects as objects\n"
        "import sys; assert 'torch' not in sys.modules\n"
        "stock = objects.recursive_find_python_class\n"
        "import torch\n"
        "from nnunet_invariance._discovery import autoload, is_hooked; autoload(); autoload()\n"
        "assert is_hooked()\n"
        "assert objects.recursive_find_python_class is finder.recursive_find_python_class is not stock\n"
        "assert objects.recursive_find_python_class.__wrapped__ is stock\n"
        "print(objects.recursive_find_trainer_class_by_name('AliceTrainer_scratch').__name__)"
    )
    assert result.stdout.splitlines()[-1:] == ["AliceTrainer_scratch"], result.stderr


def test_hook_off_the_shim_folder_serves_as_ext_trainer():
    name = "AliceTrainer_scratch_5epochs"
    code = f"""
import os, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
try:
    recursive_find_trainer_class_by_name({name!r})
except RuntimeError as error:
    print(error)
os.environ["nnUNet_extTrainer"] = {_discovery.ext_trainer_folder()!r}
first, second = (recursive_find_trainer_class_by_name({name!r}) for _ in range(2))
print(first is second, first.__name__, first.__module__, "nnunet_invariance_trainers" in sys.modules)
"""
    result = run_python(code, **{_discovery.SWITCH: "0"})
    lines = result.stdout.splitlines()
    assert any(line.startswith(f"Could not find requested nnunet trainer {name} in") for line in lines), result.stderr
    assert lines[-1] == f"True {name} nnunet_invariance.trainers False", result.stderr


def test_without_nnunet_the_hook_is_silent():
    result = run_python(
        "import sys; sys.modules['nnunetv2'] = None\n"
        "from nnunet_invariance._discovery import autoload; autoload()\n"
        "import torch; print('torch imports')\n"
        "try:\n    import nnunetv2.utilities.find_objects\n"
        "except ModuleNotFoundError as error:\n    print(error.name)\n",
        "-W", "error::UserWarning",
    )  # fmt: skip
    assert result.stdout.split("\n")[0] == "torch imports", result.stderr
    assert "nnunetv2" in result.stdout.split("\n")[1]
    assert result.stderr == ""


@pytest.mark.parametrize("broken", ["None", "types.ModuleType('nnunetv2.utilities.find_class_by_name')"])
def test_an_unexpected_nnunet_is_a_warning_with_the_remedy_and_no_error(broken):
    result = run_python(
        f"import sys, types; sys.modules['nnunetv2.utilities.find_class_by_name'] = {broken}\n"
        "from nnunet_invariance._discovery import autoload; autoload(); print('went on')"
    )
    assert result.stdout == "went on\n"
    assert "could not hook into nnU-Net" in result.stderr
    assert f"nnUNet_extTrainer={_discovery.ext_trainer_folder()}" in result.stderr


def test_the_hook_imports_the_standard_library_only():
    result = run_python(
        "import sys; before = set(sys.modules)\n"
        "from nnunet_invariance._discovery import autoload; autoload()\n"
        "tops = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(tops - set(sys.stdlib_module_names)))"
    )
    assert result.stdout == "['nnunet_invariance']\n", result.stderr


def test_the_hook_adds_less_than_five_milliseconds_to_import_torch(tmp_path):
    """The import of our modules and the call, in processor time, which the load of the machine does not change."""
    code = (
        "import sys, time, torch\n"
        "for _ in range(9):\n"
        "    start = time.process_time()\n"
        "    from nnunet_invariance._discovery import autoload; autoload()\n"
        "    print(time.process_time() - start)\n"
        "    del sys.meta_path[0]\n"
        "    for name in [n for n in sys.modules if n.startswith('nnunet_invariance')]: del sys.modules[name]\n"
    )
    bytecode = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}  # an installed package has it
    result = run_python(code, TORCH_DEVICE_BACKEND_AUTOLOAD="0", **bytecode)
    seconds = [float(line) for line in result.stdout.split()]
    assert len(seconds) == 9, result.stderr
    assert statistics.median(seconds) < 0.005
