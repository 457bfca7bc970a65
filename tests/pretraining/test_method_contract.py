"""The contract of `pretraining/engine/method.py`, for every method of the registry."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunet_invariance import registry
from nnunet_invariance.common.options import Options
from nnunet_invariance.common.precision import Precision
from nnunet_invariance.errors import OptionError
from nnunet_invariance.pretraining.engine import samples
from nnunet_invariance.pretraining.engine.contract import check_method, check_output, split_batch
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.pretraining.engine.method import load_method
from nnunet_invariance.pretraining.engine.options import LoopOptions, MethodOptions
from nnunet_invariance.pretraining.engine.samples import write_samples
from nnunet_invariance.weights.checkpoint import load_checkpoint, read_metadata
from tests.helpers import methods
from tests.helpers.methods import build, joined, losses_of, small, views_of
from tests.helpers.pretraining_runs import run_pretraining, stopped_after_step
from tests.helpers.two_ranks import RANKS, on_two_ranks

METHODS = sorted(entry.name for entry in registry.METHODS)
#: Options of a run that takes a second or two; every run has three epochs of one step.
SHORT = ["epochs=3", "iterations=1", "workers=0", "lr=1e-3", "seed=3"]


def test_every_method_is_covered():
    """Every method of the registry has a module in tests/helpers/methods, and every module a method."""
    assert {file.stem for file in Path(methods.__file__).parent.glob("*.py")} - {"__init__"} == set(METHODS)
    assert len(set(METHODS)) == len(registry.METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_picture_shows_the_batch_and_changes_nothing(name, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(samples, "draw_panels", lambda columns, heading: drawn.extend(columns) or b"picture")
    method = small(name).build().train()
    state = {key: value.clone() for key, value in method.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    write_samples(
        method, [{**small(name).batch(0), "keys": []}], tmp_path, 1, Precision.choose("auto", torch.device("cpu"))
    )
    assert method.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())
    assert (tmp_path / "samples.png").read_bytes() == b"picture"
    assert len({panel.title for panel in drawn}) == len(drawn) >= 2
    for panel in drawn:
        assert panel.volumes.shape == drawn[0].volumes.shape
        assert panel.volumes.ndim == 4
        assert panel.volumes.isfinite().all()
        assert panel.points is None or panel.points.shape == (len(panel.volumes), 3)


# ---- the class -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_options_are_checked_and_described(name):
    kind = load_method(registry.get_method(name))
    assert issubclass(kind.options_class, MethodOptions)
    for found in kind.options_class.describe():
        assert found.expected, found.name
        assert found.doc.endswith("."), found.name
        if isinstance(found.default, float) or found.default is None:
            for wrong in (math.nan, math.inf, "1"):
                with pytest.raises(OptionError, match=f"{found.name!r} is {wrong!r}"):
                    kind.options_class(**{found.name: wrong})
        elif isinstance(found.default, int) and not isinstance(found.default, bool):
            for wrong in (-1, 1.5, True):
                with pytest.raises(OptionError, match=f"{found.name!r} is {wrong!r}"):
                    kind.options_class(**{found.name: wrong})


def test_options_of_the_loop_are_checked():
    assert issubclass(LoopOptions, Options)
    nan = math.nan
    wrong = {
        "lr": [nan, 0, -1.0],
        "weight_decay": [nan, -1.0],
        "grad_clip_norm": [nan, -1.0, 0],
        "seed": [-1, 2**32, 0.5],
        "epochs": [0, 1.5],
        "iterations": [0],
        "workers": [-1],
        "warmup": [nan, 1.5],
        "lr_end": [nan],
        "grad_accum_steps": [0],
        "patience": [nan, -0.1],
        "timeout": [0, nan],
        "compile": [1],
        "precision": ["half", None],
    }
    assert set(wrong) == {field.name for field in dataclasses.fields(LoopOptions)}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(OptionError, match=f"{name!r} is {value!r}"):
                LoopOptions(**{name: value})


@pytest.mark.parametrize("name", METHODS)
def test_attributes_of_the_class(name):
    kind = load_method(registry.get_method(name))
    assert set(kind.loop_defaults) <= {"lr", "weight_decay"}
    assert kind.output_options <= {field.name for field in dataclasses.fields(kind.options_class)}
    assert set(kind.pretrained) <= {"encoder", "decoder"}
    assert kind.__doc__
    assert set(kind.options_class.preset_of_network.values()) <= set(kind.options_class.presets)


# ---- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_step_meets_the_contract(name, device):
    method = small(name).build().train().to(device)
    check_method(method)
    batch = {key: value.to(device) for key, value in small(name).batch(0).items()}
    views = method.make_views(batch, torch.Generator(device).manual_seed(0))
    assert not any(view.requires_grad for view in views.values() if isinstance(view, Tensor))
    output = method(views, 0.5)
    check_output(method, output)
    sum(method.loss_weights[part] * value for part, value in output.losses.items()).backward()
    assert all(value.isfinite() for value in (*output.losses.values(), *output.diagnostics.values()))
    trained = {part: p for part, p in method.named_parameters() if p.requires_grad}
    assert [part for part, p in trained.items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in trained.values())
    method.after_step(output, 0.5)
    if method.teacher is not None:
        assert not method.teacher.training
        assert not any(p.requires_grad for p in method.teacher.parameters())


# ---- a run -----------------------------------------------------------------------------------------------------------


def run(request, name, *settings, **kwargs):
    dataset = request.getfixturevalue("modalities" if registry.get_method(name).least_channels > 1 else "tiny")
    words = [*SHORT, *small(name).SETTINGS, *settings]
    device = request.config.getoption("--device", "cpu")
    return run_pretraining(name, dataset.name, "3d_fullres", settings=words, device=device, **kwargs)


@pytest.mark.integration
@pytest.mark.parametrize("name", METHODS)
def test_batches_are_functions_of_seed_rank_and_step(name, request, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    seen = []

    def look(loop):
        def tensors(seed, rank, step):
            parts, keys = split_batch(loop.method, loop.method.dataset(8, seed, rank)[step])
            assert keys
            return {part: value.float() for part, value in parts.items()}

        first, again, other = tensors(0, 0, 1), tensors(0, 0, 1), tensors(0, 1, 1)
        assert all(torch.equal(first[part], again[part]) for part in first)
        assert any(not torch.equal(first[part], other[part]) for part in first)
        seen.append(loop.method.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "run", look)
    with pytest.raises(KeyboardInterrupt):
        run(request, name)
    assert seen == [name]


@pytest.mark.integration
@pytest.mark.parametrize("name", METHODS)
def test_three_steps_are_finite_and_a_stopped_run_ends_bit_identical(name, request, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    path = run(request, name)
    whole, metadata = load_checkpoint(path).tensors, read_metadata(path)
    kind = load_method(registry.get_method(name))
    assert metadata["method"] == name
    assert metadata["pretrained"] == list(kind.pretrained)
    history = metadata["progress"]["history"]
    assert [row["step"] for row in history] == [1, 2, 3]
    assert all(math.isfinite(value) for row in history for value in row.values())
    assert history[-1]["skipped"] == 0

    with stopped_after_step(2):
        run(request, name)
    torch.rand(7)  # the global generator is in another state now
    again = load_checkpoint(run(request, name, resume=True)).tensors
    assert whole.keys() == again.keys()
    assert [part for part in whole if not torch.equal(whole[part], again[part])] == []


# ---- two ranks -------------------------------------------------------------------------------------------------------


def methods_on_one_rank(rank):
    """Mean losses over the ranks, and gradients, of every method."""
    found = {}
    for name in METHODS:
        method = build(name)
        losses = losses_of(DistributedDataParallel(method, broadcast_buffers=False), views_of(name, rank))
        dist.all_reduce(losses)
        gradients = {part: p.grad for part, p in method.named_parameters() if p.grad is not None}
        found[name] = {"losses": losses / RANKS, "gradients": gradients}
    return found


@pytest.fixture(scope="module")
def two_ranks():
    """Losses and gradients of every method on two ranks, as the first one has them."""
    return on_two_ranks(methods_on_one_rank)[0]


@pytest.mark.integration
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_equal_one_rank_on_the_joined_batch(name, two_ranks):
    method = build(name)
    losses = losses_of(method, joined(name, [views_of(name, rank) for rank in range(RANKS)]))
    two = two_ranks[name]
    assert torch.allclose(two["losses"], losses, rtol=1e-8)
    assert losses.min() > 0
    one = {part: p.grad for part, p in method.named_parameters() if p.grad is not None}
    assert one.keys() == two["gradients"].keys()
    assert len(one) > 10
    for parameter, gradient in one.items():
        assert torch.allclose(two["gradients"][parameter], gradient, rtol=1e-6, atol=1e-10), parameter
