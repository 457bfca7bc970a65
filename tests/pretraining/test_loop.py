"""The loop on a method of one parameter: accumulation, non-finite steps, broken contracts, workers and locks."""

import csv
import logging
import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch import Tensor

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.common.lock import lock_folder
from nnunet_invariance.errors import (
    DamagedFileError,
    FolderLockedError,
    MethodContractError,
    NonFiniteLossError,
    OutputError,
    WeightsIncompatibleError,
    WorkerError,
)
from nnunet_invariance.nnunet.cases import Manifest
from nnunet_invariance.pretraining.engine.contract import check_method
from nnunet_invariance.pretraining.engine.folder import hold_folder, start_folder
from nnunet_invariance.pretraining.engine.history import draw_history
from nnunet_invariance.pretraining.engine.loop import FINAL, LATEST
from nnunet_invariance.pretraining.engine.method import Method, StepOutput, frozen_copy
from nnunet_invariance.pretraining.engine.options import MethodOptions
from nnunet_invariance.weights.checkpoint import load_checkpoint
from tests.helpers.line_method import Line, LineOptions, Numbers, make_loop, step


def test_gradients_accumulate_to_their_mean(tmp_path):
    method = Line()
    loop = make_loop(method, tmp_path, grad_accum_steps=3, grad_clip_norm=1e9)
    loop.optimizer = torch.optim.SGD(method.parameters(), 0.1)
    weight = method.network.weight.item()
    step(loop, 0, 1, 5)
    assert method.network.weight.item() == pytest.approx(weight - 0.1 * 2 * (weight - 2), rel=1e-6)
    assert loop.sums["square"] == pytest.approx(sum((weight - x) ** 2 for x in (0, 1, 5)) / 3, rel=1e-5)
    assert method.updates == [2]
    assert loop.step == 1
    step(loop, 0, float("nan"), 1)
    assert (loop.step, loop.skipped) == (2, 1)


def test_another_number_of_ranks_is_refused(tmp_path):
    loop = make_loop(Line(), tmp_path)
    step(loop, 1)
    checkpoint = load_checkpoint(loop.save())
    other = make_loop(Line(), tmp_path)
    other.ranks = DistributedContext(0, 2, torch.device("cpu"))
    with pytest.raises(WeightsIncompatibleError, match=r"trained with 1 rank, and this run has 2.*nproc-per-node 1"):
        other.restore(checkpoint)
    make_loop(Line(), tmp_path).restore(checkpoint)


# ---- non-finite numbers ----------------------------------------------------------------------------------------------


class InfiniteGradient(Line):
    """Finite losses whose gradient is infinite while x is negative."""

    def forward(self, views: dict[str, Tensor], progress: float) -> StepOutput:
        output = super().forward(views, progress)
        if views["x"] < 0:
            output.losses["square"].register_hook(lambda gradient: gradient * float("inf"))
        return output


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(tmp_path, caplog):
    method = InfiniteGradient()
    loop = make_loop(method, tmp_path)
    step(loop, 1)
    before = [tensor.clone() for tensor in (method.network.weight, *loop.optimizer.state_dict()["state"][0].values())]
    with caplog.at_level(logging.WARNING):
        step(loop, -1)
    after = (method.network.weight, *loop.optimizer.state_dict()["state"][0].values())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert (loop.step, loop.skipped, method.updates) == (2, 1, [1])
    assert "step 2 skipped: the gradient is not finite; cases: case_-1" in caplog.text
    step(loop, 3)
    assert method.updates == [1, 3]


def test_five_gradients_in_a_row_that_are_not_finite_end_the_run(tmp_path):
    loop = make_loop(InfiniteGradient(), tmp_path)
    for x in (-1, -2, 1, -3, -4, -5, -6):  # the third step is good
        step(loop, x)
    with pytest.raises(NonFiniteLossError, match=r"gradient was not finite in 5 steps in a row, up to step 8.*case_-3"):
        step(loop, -7)


class Overflow(Line):
    """A gradient that overflows while the scaled loss has a gradient of at least 8; x does not matter."""

    def forward(self, views: dict[str, Tensor], progress: float) -> StepOutput:
        output = super().forward(views, progress)
        output.losses["square"].register_hook(lambda gradient: gradient / (gradient < views["x"]))
        return output


def run_steps(loop, count: int, x: float) -> None:
    for _ in range(count):
        step(loop, x)


def scaled_loop(method: Method, folder, scale: float):
    loop = make_loop(method, folder)
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return loop


def test_an_overflow_lowers_the_scale_is_counted_and_changes_nothing_else(tmp_path, caplog):
    method = Overflow()
    loop = scaled_loop(method, tmp_path, 16.0)
    before = method.network.weight.item()
    with caplog.at_level(logging.INFO):
        step(loop, 8)
        step(loop, 8)
    assert (loop.skipped, method.updates, loop.optimizer.state_dict()["state"]) == (2, [], {})
    assert method.network.weight.item() == before
    assert loop.scaler.get_scale() == 4
    assert caplog.text.count("overflow") == 2
    step(loop, 8)
    assert (loop.skipped, method.updates) == (2, [8])
    assert method.network.weight.item() != before


def test_the_step_of_a_scaled_loss_is_the_step_without_a_scale(tmp_path):
    weights = []
    for scale in (None, 64.0):
        torch.manual_seed(0)
        method = Line()
        loop = make_loop(method, tmp_path) if scale is None else scaled_loop(method, tmp_path, scale)
        for x in (1, 2, 3):
            step(loop, x)
        weights.append(method.network.weight.item())
    assert weights[0] == pytest.approx(weights[1], rel=1e-6)


def test_overflows_end_the_run_when_the_scale_cannot_be_lowered_further(tmp_path):
    loop = scaled_loop(Overflow(), tmp_path, 8.0)
    with pytest.raises(NonFiniteLossError, match="5 steps in a row, up to step 7"):  # 4 and 2 are lower scales
        run_steps(loop, 20, 1e-9)


def test_a_loss_that_is_not_finite_is_no_overflow(tmp_path):
    loop = scaled_loop(Line(), tmp_path, 1024.0)
    with pytest.raises(NonFiniteLossError, match="loss was not finite in 5 steps in a row, up to step 5"):
        run_steps(loop, 20, float("nan"))


def test_the_last_step_of_a_run_cannot_damage_the_finished_checkpoint(tmp_path):
    class LastStep(InfiniteGradient):
        def make_views(self, batch, generator):
            return {"x": torch.where(batch["x"] == 3, -1.0, batch["x"])}

    path = make_loop(LastStep(), tmp_path, iterations=2, epochs=2).run()
    checkpoint = load_checkpoint(path)
    assert all(tensor.isfinite().all() for tensor in checkpoint.tensors.values())
    assert checkpoint.metadata["progress"]["history"][-1]["skipped"] == 1


@pytest.mark.parametrize("finished", [False, True])
def test_a_tensor_that_is_not_finite_is_never_written(tmp_path, finished):
    method = Line()
    loop = make_loop(method, tmp_path)
    step(loop, 1)
    path = loop.save()
    good = path.read_bytes()
    with torch.no_grad():
        method.network.weight.fill_(float("nan"))
    with pytest.raises(
        NonFiniteLossError, match=r"After step 1 1 of \d+ tensors are not finite, first network\.weight"
    ):
        loop.save(finished)
    assert (tmp_path / LATEST).read_bytes() == good
    assert not (tmp_path / FINAL).exists()


# ---- the contract ----------------------------------------------------------------------------------------------------


def broken(**parts):
    """A method whose forward pass returns other parts."""

    class Broken(Line):
        def forward(self, views: dict[str, Tensor], progress: float) -> StepOutput:
            output = super().forward(views, progress)
            for part, value in parts.items():
                setattr(output, part, value(output) if callable(value) else value)
            return output

    return Broken()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"losses": {}}, "the set of losses is empty; expected the names in loss_weights: square"),
        ({"losses": lambda o: {**o.losses, "more": o.losses["square"]}}, "the set of losses is square, more"),
        ({"losses": lambda o: {"square": 1.0}}, "the loss 'square' is a float; expected a scalar tensor"),
        ({"losses": lambda o: {"square": o.losses["square"][None]}}, r"the loss 'square' is a tensor of shape \(1,\)"),
        ({"losses": lambda o: {"square": o.losses["square"].detach()}}, "the loss 'square' is without gradient"),
        ({"diagnostics": lambda o: {"a": o.losses["square"]}}, "the diagnostic 'a' is a scalar with gradient"),
        ({"diagnostics": {"a": 1.0}}, "the diagnostic 'a' is a float; expected a scalar tensor"),
        ({"diagnostics": {"square": torch.tensor(1.0)}}, "the diagnostic 'square' is also the name of a loss"),
        ({"diagnostics": {"loss": torch.tensor(1.0)}}, "the diagnostic 'loss' is also the name of a loss"),
        ({"state": {"x": 1.0}}, r"state\['x'\] is a float; expected a tensor"),
    ],
)
def test_an_output_that_breaks_the_contract_is_named(tmp_path, parts, message):
    with pytest.raises(MethodContractError, match=rf"The method 'line': {message}.*engine/method\.py"):
        step(make_loop(broken(**parts), tmp_path), 1)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([torch.tensor(1.0)], r"a batch of dataset\(\) is a list; expected a dict"),
        ({"x": torch.tensor(1.0)}, "a batch's 'keys' is None; expected a list of the names of its cases"),
        ({"x": torch.tensor(1.0), "keys": ("a",)}, r"a batch's 'keys' is \('a',\)"),
        ({"x": 1.0, "keys": ["a"]}, "a batch's 'x' is a float; expected a tensor"),
        (None, r"a batch of dataset\(\) is a NoneType; expected a dict"),
    ],
)
def test_a_batch_that_breaks_the_contract_is_named(tmp_path, item, message):
    with pytest.raises(MethodContractError, match=message):
        make_loop(Line(), tmp_path)._train_step([item], None)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (None, r"the result of make_views\(\) is a NoneType; expected a dict"),
        ((torch.ones(2, 1),), r"the result of make_views\(\) is a tuple; expected a dict"),
        ({"x": torch.ones(2, 1, requires_grad=True)}, r"the view 'x' is a tensor with gradient; .* torch\.no_grad\(\)"),
    ],
)
def test_views_that_break_the_contract_are_named(tmp_path, monkeypatch, views, message):
    monkeypatch.setattr(Line, "make_views", lambda self, batch, generator: views)
    with pytest.raises(MethodContractError, match=rf"The method 'line': {message}.*engine/method\.py"):
        step(make_loop(Line(), tmp_path), 1)


@pytest.mark.parametrize(
    ("hook", "expected"),
    [("dataset", "a map-style"), ("forward", "a StepOutput"), ("evaluate", "a dict"), ("problems", "a list")],
)
def test_a_hook_that_returns_none_is_named(tmp_path, monkeypatch, hook, expected):
    monkeypatch.setattr(Line, hook, lambda *_: None)
    with pytest.raises(MethodContractError, match=rf"the result of {hook}\(\) is a NoneType; expected {expected}"):
        make_loop(Line(), tmp_path).run()


def test_a_method_that_breaks_the_contract_is_named():
    def with_part(name, value):
        method = Line()
        setattr(method, name, value)
        return method

    check_method(Line())
    method = Line()
    check_method(with_part("teacher", frozen_copy(method.network)))
    for name, value, message in (
        ("options", MethodOptions(), "options is a MethodOptions; expected a LineOptions"),
        ("teacher", torch.nn.Linear(1, 1), r"teacher is another network \(bias\)"),
        ("teacher", torch.nn.Linear(1, 1, bias=False), "teacher is a network with gradients"),
        ("loss_weights", {}, "loss_weights is {}"),
        ("loss_weights", {"square": float("nan")}, "loss_weights is {'square': nan}"),
    ):
        with pytest.raises(MethodContractError, match=message):
            check_method(with_part(name, value))
    with pytest.raises(MethodContractError, match=r"the state 'projector\.bias' is an attribute of the method itself"):
        check_method(with_part("projector", torch.nn.Linear(1, 1)))
    method.network.requires_grad_(False)
    with pytest.raises(MethodContractError, match="without a trained parameter"):
        check_method(method)


def test_a_trained_parameter_without_gradient_is_named(tmp_path):
    method = Line()
    method.heads = torch.nn.Linear(1, 1)
    with pytest.raises(MethodContractError, match=r"'heads\.weight' is without gradient; .* self\.freeze_decoder\(\)"):
        step(make_loop(method, tmp_path), 1)


def test_a_class_that_breaks_the_contract_cannot_be_defined():
    with pytest.raises(MethodContractError, match="Half has no class attribute 'name'"):

        class Half(Method):
            pass

    with pytest.raises(MethodContractError, match="expected a subclass of MethodOptions"):

        class Untyped(Line):
            options_class = dict

    with pytest.raises(MethodContractError, match="The options seed of the method Colliding have names of options of"):

        class Colliding(Line):
            options_class = type("Colliding", (LineOptions,), {"__annotations__": {"seed": int}, "seed": 0})
            options_class = __import__("dataclasses").dataclass(frozen=True)(options_class)

    with pytest.raises(TypeError, match="abstract"):
        type("Abstract", (Method,), {"name": "a", "citation": "b", "options_class": LineOptions})()


# ---- workers ---------------------------------------------------------------------------------------------------------


class Troubled(Numbers):
    """Numbers, until a worker fails at step 3."""

    def __init__(self, steps: int, trouble: str) -> None:
        super().__init__(steps)
        self.trouble = trouble

    def __getitem__(self, index: int):
        if index == 3:
            if self.trouble == "error":
                raise DamagedFileError("case_003.b2nd is damaged. Preprocess it again.")
            os.kill(os.getpid(), {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[self.trouble])
        return super().__getitem__(index)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        ("killed", WorkerError, r"A data worker died: .*pid.*then continue with --c"),
        ("stopped", WorkerError, r"No data worker delivered a batch within 2 seconds.*\d+ \(stopped\)"),
        ("error", DamagedFileError, r"^case_003\.b2nd is damaged\. Preprocess it again\.$"),
    ],
)
def test_a_failing_worker_ends_the_run_with_a_named_error(tmp_path, trouble, error, message):
    class Reader(Line):
        def dataset(self, steps, seed, rank):
            return Troubled(steps, trouble)

    started = time.monotonic()
    with pytest.raises(error, match=message):
        make_loop(Reader(), tmp_path, workers=1, timeout=2).run()
    assert time.monotonic() - started < 30
    assert multiprocessing.active_children() == [], "Python would wait for them at its end"


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_a_folder_is_held_by_one_run(tmp_path):
    folder = tmp_path / "run"
    with hold_folder(folder):
        start_folder(folder, Manifest((), ()))
        pid = os.fork()
        if not pid:  # another process
            try:
                with hold_folder(folder):
                    os._exit(1)
            except FolderLockedError as error:
                os._exit(0 if f"process {os.getppid()} on " in str(error) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with hold_folder(folder):
        pass


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    holder = os.fork()
    if not holder:
        with hold_folder(tmp_path):
            if not os.fork():  # the worker
                atomic_write(tmp_path / "worker", lambda file: file.write(str(os.getpid()).encode()))
            time.sleep(60)
            os._exit(0)
    while not (tmp_path / "worker").exists():
        time.sleep(0.01)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        with lock_folder(tmp_path):
            pass
    finally:
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


def test_an_interrupted_move_of_an_earlier_run_is_completed(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (FINAL, "log.txt", "metrics.csv"):
        (folder / name).write_text(name)
    with hold_folder(folder):
        start_folder(folder, Manifest((), ()))
    assert {path.name for path in folder.iterdir()} == {"lock", "manifest.json"}
    (moved,) = (path for path in tmp_path.iterdir() if path != folder)
    assert {path.name: path.read_text() for path in moved.iterdir()} == {
        n: n for n in (FINAL, "log.txt", "metrics.csv")
    }


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"), hold_folder(tmp_path / "file" / "run"):
        pass


# ---- problems and monitors -------------------------------------------------------------------------------------------


class Collapsed(Line):
    """A method that reports a collapse in every epoch but the first."""

    def problems(self, diagnostics):
        return ["collapse: all targets are equal; lower the rate"] if len(self.updates) > 2 else []


@pytest.mark.integration
def test_a_problem_is_an_error_in_the_log_and_the_run_goes_on(tmp_path, caplog):
    loop = make_loop(Collapsed(), tmp_path, epochs=3, iterations=2)
    loop.run()
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    text = "collapse: all targets are equal; lower the rate"
    assert errors[:2] == [f"epoch {epoch}: {text}" for epoch in (2, 3)]
    assert "the run ended with 1 problem" in errors[2]
    assert load_checkpoint(tmp_path / FINAL).metadata["finished"]


def test_the_picture_shows_a_problem_in_red():
    history = [{"epoch": 1.0, "loss": 2.0}]
    assert draw_history(history)._suptitle is None
    title = draw_history(history, ["collapse: all targets are equal; lower the rate"])._suptitle
    assert "lower the rate" in title.get_text()
    assert title.get_color() == "#b00020"


def test_the_picture_leaves_out_what_does_not_matter_and_says_what_is_good():
    numbers = {"lr": 0.1, "seconds": 1.0, "iterations_per_second": 2.0, "skipped": 0.0}
    history = [{"epoch": e, "step": e, "loss": 1 / e, "square": 1 / e, "warmth": e, **numbers} for e in (1.0, 2.0)]

    def titles():
        figure = draw_history(history, (), {"warmth": "warmth (higher is better)"})
        return [axis.get_title("left") for axis in figure.axes]

    assert titles() == ["total loss (lower is better)", "warmth (higher is better)"]
    history[1]["skipped"] = 1.0
    assert titles()[-1] == "steps that changed nothing (0 is best)"


def test_rounding_of_a_constant_is_drawn_as_a_line():
    history = [{"epoch": float(e), "loss": 1 + e * 1e-8, "warmth": 1 + e / 10} for e in range(3)]
    ranges = [high - low for low, high in (axis.get_ylim() for axis in draw_history(history).axes)]
    assert ranges == pytest.approx([1e-3, 0.22], rel=0.01)


def test_a_method_without_a_picture_draws_none(tmp_path):
    make_loop(Line(), tmp_path, epochs=1, iterations=1).run()
    assert (tmp_path / "progress.png").exists()
    assert not (tmp_path / "samples.png").exists()


class Thermometer:
    """A monitor that counts its calls."""

    every, calls = 2, 0

    def start(self, planned, method, device):
        raise AssertionError("the loop does not start it")

    def measure(self, method):
        assert not method.training
        self.calls += 1
        return {"warmth": float(self.calls)}


@pytest.mark.integration
def test_a_monitor_measures_the_start_every_second_epoch_and_the_end(tmp_path):
    loop = make_loop(Line(), tmp_path, epochs=5, iterations=1)
    loop.monitor = Thermometer()
    loop.run()
    measured = {row["epoch"]: row["warmth"] for row in loop.history if "warmth" in row}
    assert measured == {0: 1, 2: 2, 4: 3, 5: 4}
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["warmth"] for row in rows] == ["1.0", "", "2.0", "", "3.0", "4.0"]
    assert [row["square"] != "" for row in rows] == [False, True, True, True, True, True]
    assert loop.method.training
    (axis,) = [a for a in draw_history(loop.history).axes if a.get_title("left") == "warmth"]
    assert axis.lines[0].get_xdata().tolist() == [0, 2, 4, 5]
