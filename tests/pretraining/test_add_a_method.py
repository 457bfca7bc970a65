"""The code of docs/add-a-method.md runs: the method, its trainer, its registry entry and its small form."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from nnunet_invariance import registry
from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.cli.main import main
from nnunet_invariance.registry import MethodEntry
from nnunet_invariance.weights.checkpoint import read_metadata

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


def blocks():
    """The code of the page by file, and the registry entry."""
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    named = {match[1]: text for text in code if (match := re.match(r"# (\S+\.py)\n", text))}
    (entry,) = (text for text in code if text.startswith("MethodEntry("))
    return named, entry


@pytest.fixture
def consistency(monkeypatch):
    """The modules of the page, and their entry in the registry for the length of a test."""
    named, entry = blocks()
    files = {"nnunet_invariance/": "nnunet_invariance.", "trainers/": "nnunet_invariance.trainers.", "tests/": "tests."}
    for file, text in named.items():
        start = next(start for start in files if file.startswith(start))
        name = files[start] + file.removeprefix(start).removesuffix(".py").replace("/", ".")
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(text, file, "exec"), module.__dict__)
    monkeypatch.setattr(registry, "_methods", registry.methods())
    registry.register(eval(entry, {"MethodEntry": MethodEntry}))
    find_trainer.cache_clear()
    yield sys.modules["tests.helpers.methods.consistency"]
    find_trainer.cache_clear()


def test_the_example_pre_trains_and_its_trainer_is_found(consistency, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    words = ["--epochs", "1", "--iterations", "2", "-device", "cpu", "--set", "workers=0", "ema_start=0.9"]
    assert main(["pretrain", "consistency", tiny.name, "3d_fullres", *words]) == 0
    (path,) = tmp_path.glob("*/pretraining/consistency__nnUNetPlans__3d_fullres/checkpoint_final.safetensors")
    assert read_metadata(path)["progress"]["history"][0]["consistency"] > 0
    for name in ("ConsistencyTrainer", "ConsistencyTrainer_scratch", "ConsistencyTrainer_1epoch"):
        assert find_trainer(name).method == "consistency"


@pytest.mark.integration
def test_the_example_learns(consistency):
    torch.manual_seed(0)
    method = consistency.build().train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-2)
    losses = []
    for step in range(15):
        output = method(method.make_views(consistency.batch(0), torch.Generator().manual_seed(step)), 0.5)
        optimizer.zero_grad()
        output.losses["consistency"].backward()
        optimizer.step()
        method.after_step(output, 0.5)
        losses.append(output.losses["consistency"].item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_table_names_every_option_of_the_loop():
    from dataclasses import fields

    from nnunet_invariance.pretraining import LoopOptions

    assert {field.name for field in fields(LoopOptions)} <= set(re.findall(r"`(\w+)`", PAGE.read_text()))
