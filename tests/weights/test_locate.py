"""The four locations of weights: their order, when a search stops, and the error that lists them."""

from pathlib import Path

import pytest

from nnunet_invariance.errors import CheckpointCorruptError, EnvironmentNotSetError, WeightsNotFoundError
from nnunet_invariance.weights import locate
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE, find_weights, pretraining_folder
from tests.helpers.small_checkpoints import write

RUN = ("alice", "Dataset777_Tiny", "nnUNetPlans", "3d_fullres")


@pytest.fixture(autouse=True)
def empty_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty results, an empty package, and no variable."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(locate, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "results"


def test_the_folder_of_a_pretraining(empty_results: Path) -> None:
    expected = empty_results / "Dataset777_Tiny" / "pretraining" / "alice__nnUNetPlans__3d_fullres"
    assert pretraining_folder(*RUN) == expected


def test_each_location_wins_over_the_later_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = write(tmp_path / "shipped" / "alice_anything.safetensors")
    write(tmp_path / "shipped" / "a_puir.safetensors", method="puir")
    assert find_weights(*RUN) == locate.FoundWeights(shipped, "shipped with the package", shipped=True)

    trained = write(pretraining_folder(*RUN) / "checkpoint_final.safetensors")
    assert find_weights(*RUN) == locate.FoundWeights(trained, "finished pre-training")

    planned = write(tmp_path / "planned.safetensors")
    assert find_weights(*RUN, checkpoint=str(planned)).path == planned
    assert "plans block" in find_weights(*RUN, checkpoint=str(planned)).location

    named = write(tmp_path / "named.safetensors")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(named))
    assert find_weights(*RUN, checkpoint=str(planned)).path == named
    assert ENVIRONMENT_VARIABLE in find_weights(*RUN, checkpoint=str(planned)).location

    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    assert find_weights(*RUN, checkpoint=str(planned)).path == planned


def test_weights_of_other_runs_are_not_used(tmp_path: Path) -> None:
    for run in (("puir", *RUN[1:]), ("alice", "Dataset778_Other", *RUN[2:]), (*RUN[:2], "otherPlans", RUN[3])):
        write(pretraining_folder(*run) / "checkpoint_final.safetensors")
    write(tmp_path / "shipped" / "puir.safetensors", method="puir")
    folder = pretraining_folder(*RUN)
    write(folder.with_name(f"{folder.name}_2026-01-01") / "checkpoint_final.safetensors")
    with pytest.raises(WeightsNotFoundError):
        find_weights(*RUN)


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_a_missing_named_file_stops_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    good = write(pretraining_folder(*RUN) / "checkpoint_final.safetensors")
    bad = tmp_path / "bad.safetensors"
    if what == "folder":
        bad.mkdir()
    with pytest.raises(WeightsNotFoundError, match=r"plans block.*bad\.safetensors.*no other location is searched"):
        find_weights(*RUN, checkpoint=str(bad))
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(bad))
    with pytest.raises(WeightsNotFoundError, match=rf"{ENVIRONMENT_VARIABLE}.*bad\.safetensors"):
        find_weights(*RUN, checkpoint=str(good))


def test_an_unfinished_run_is_used_only_when_named(tmp_path: Path) -> None:
    write(tmp_path / "shipped" / "alice.safetensors")
    latest = write(pretraining_folder(*RUN) / "checkpoint_latest.safetensors", finished=False, step=3)
    with pytest.raises(WeightsNotFoundError, match=r"not finished \(step 3 of 10000\)") as error:
        find_weights(*RUN)
    assert "nnunet-invariance pretrain alice Dataset777_Tiny 3d_fullres -p nnUNetPlans --c" in str(error.value)
    assert f"{ENVIRONMENT_VARIABLE}={latest}" in str(error.value)
    assert find_weights(*RUN, checkpoint=str(latest)).path == latest


def test_a_damaged_unfinished_run_is_named() -> None:
    latest = pretraining_folder(*RUN) / "checkpoint_latest.safetensors"
    latest.parent.mkdir(parents=True)
    latest.write_bytes(b"")
    with pytest.raises(CheckpointCorruptError, match=r"checkpoint_latest\.safetensors cannot be used: it is empty"):
        find_weights(*RUN)


def test_the_error_lists_the_locations_and_the_command(empty_results: Path) -> None:
    with pytest.raises(WeightsNotFoundError) as error:
        find_weights(*RUN)
    message = str(error.value)
    places = [line for line in message.splitlines() if line.startswith("  ")]
    assert [line.split(".")[0].strip() for line in places] == ["1", "2", "3", "4"]
    assert ENVIRONMENT_VARIABLE in places[0]
    assert '"checkpoint"' in places[1]
    assert str(pretraining_folder(*RUN)) in places[2]
    assert "`nnunet-invariance pretrain alice Dataset777_Tiny 3d_fullres -p nnUNetPlans`" in message
    assert not empty_results.exists()


def test_results_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(EnvironmentNotSetError, match="nnUNet_results is not set"):
        find_weights(*RUN)
