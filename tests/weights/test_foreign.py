"""Foreign .pth files: stock nnU-Net checkpoints open, and no code in a file runs."""

import argparse
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_invariance.errors import CheckpointCorruptError, UnsafeCheckpointError, WeightsNotFoundError
from nnunet_invariance.weights.foreign import open_foreign


class Calls:
    """Pickles as a call of `function(*arguments)` at loading time."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def with_pickle(path: Path, data: bytes) -> Path:
    """A torch.save archive whose pickle is replaced."""
    buffer = io.BytesIO()
    torch.save({}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.namelist():
            new.writestr(item, data if item.endswith("data.pkl") else old.read(item))
    return path


def test_stock_nnunet_checkpoint_opens(tmp_path: Path, tiny) -> None:
    """Written by nnUNetTrainer.save_checkpoint itself, which PyTorch alone refuses to open without code."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    dataset = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    plans = {**tiny.plans, "continue_training": False}
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset, torch.device("cpu"))
    trainer.initialize()
    trainer._best_ema = np.float64(0.25)
    trainer.logger.log("mean_fg_dice", np.float32(0.5), 0)
    trainer.save_checkpoint(str(tmp_path / "checkpoint_final.pth"))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)

    content = open_foreign(tmp_path / "checkpoint_final.pth")
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(content["network_weights"][name], tensor)
    assert content["_best_ema"] == 0.25
    assert isinstance(content["_best_ema"], np.float64)
    assert content["logging"]["mean_fg_dice"][0] == np.float32(0.5)
    assert content["init_args"]["configuration"] == "3d_fullres"


@pytest.mark.parametrize(
    "value",
    [
        np.float32(1.5),
        np.float64(-2.25),
        np.int64(3),
        np.bool_(True),
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">f4"),
        torch.device("cuda", 1),
        argparse.Namespace(lr=0.1, sizes=[1, 2]),
    ],
    ids=repr,
)
def test_plain_values_come_back_equal(tmp_path: Path, value) -> None:
    torch.save({"value": value}, tmp_path / "a.pth")
    back = open_foreign(tmp_path / "a.pth")["value"]
    assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value
    if isinstance(value, (np.generic, np.ndarray)):
        assert back.dtype == value.dtype.newbyteorder("=")


def test_code_is_not_run_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "hostile.pth"
    torch.save({"network_weights": {}, "x": Calls(exec, f"open({str(canary)!r}, 'w')")}, path)
    torch.load(path, weights_only=False)
    assert canary.exists()  # the file is as hostile as it should be
    canary.unlink()
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UnsafeCheckpointError, match=r"hostile\.pth was not opened: .*builtins\.exec, .*state_dict"):
        open_foreign(path)
    assert not canary.exists()


def test_system_call_in_the_old_format_is_not_run(tmp_path: Path) -> None:
    import os

    canary = tmp_path / "canary"
    torch.save({"x": Calls(os.system, f"touch {canary}")}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeCheckpointError, match=r"needs posix\.system"):
        open_foreign(tmp_path / "a.pth")
    assert not canary.exists()


def test_the_allow_lists_of_other_packages_do_not_apply(tmp_path: Path) -> None:
    torch.save({"x": Calls(sorted, [2, 1])}, tmp_path / "a.pth")
    before = set(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals([sorted])
    try:
        assert torch.load(tmp_path / "a.pth", weights_only=True) == {"x": [1, 2]}
        with pytest.raises(UnsafeCheckpointError, match=r"needs builtins\.sorted"):
            open_foreign(tmp_path / "a.pth")
        assert set(torch.serialization.get_safe_globals()) == before | {sorted}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(list(before))


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    torch.save({"x": np.array([1, "a"], dtype=object)}, tmp_path / "a.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"numpy\.dtype\('O8'\)"):
        open_foreign(tmp_path / "a.pth")


def test_a_number_cannot_be_declared_a_pointer(tmp_path: Path) -> None:
    """NumPy itself lets a pickle flag float64 as 'item is a pointer', and then hands out an address as the number."""
    crafted = (
        b"\x80\x02}(X\x01\x00\x00\x00xcnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00f8\x89\x88tR"
        b"(K\x03X\x01\x00\x00\x00<NNNK\x08K\x08K\x04tb"
        + b"c_codecs\nencode\n(X\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1tRtRu."
    )
    value = open_foreign(with_pickle(tmp_path / "a.pth", crafted))["x"]
    assert value == np.frombuffer(b"A" * 8, dtype="<f8")[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
        lambda p: p.write_bytes(bytes(range(256)) * 4),
        lambda p: (torch.save({"a": torch.zeros(1000)}, p), p.write_bytes(p.read_bytes()[:2000])),
        lambda p: torch.save(torch.zeros(3), p),
        lambda p: with_pickle(p, b"\x80\x02R."),
    ],
    ids=["empty", "text", "noise", "truncated", "no dictionary", "broken pickle"],
)
def test_unreadable_files_are_named(tmp_path: Path, make) -> None:
    path = tmp_path / "a.pth"
    make(path)
    with pytest.raises(CheckpointCorruptError) as error:
        open_foreign(path)
    assert str(path) in str(error.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"no file .*a\.pth"):
        open_foreign(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore")  # torch.jit is on its way out, but its files are about
def test_programs_are_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "a.pth")
    with pytest.raises(UnsafeCheckpointError, match="TorchScript"):
        open_foreign(tmp_path / "a.pth")
