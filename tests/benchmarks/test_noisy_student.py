"""The labels that a trained network gives the cases without labels, for the training of another one."""

import json
from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from benchmarks.studies.noisy_student import write_round
from tests.helpers.tiny_trainers import make_trainer


def test_the_other_cases_get_the_networks_labels(tiny, results, tmp_path, monkeypatch):
    tree = tmp_path / "tree" / tiny.name
    tree.mkdir(parents=True)
    for name in ("dataset.json", "dataset_fingerprint.json", "nnUNetPlans.json", "nnUNetPlans_3d_fullres"):
        (tree / name).symlink_to(tiny.preprocessed / tiny.name / name)
    split = {"train": ["case_000", "case_001"], "val": ["case_002"]}
    (tree / "splits_final.json").write_text(json.dumps([split] * 2))
    monkeypatch.setenv("nnUNet_preprocessed", str(tree.parent))
    trainer = make_trainer(tiny, "BaselineTrainer_1epoch", seed=0, iterations_per_epoch=1, mirroring=[])
    trainer.fold = 1
    trainer.output_folder = str(Path(trainer.output_folder).with_name("fold_1"))
    trainer.on_train_start()
    trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))

    out = tmp_path / "round"
    assert write_round(Path(trainer.output_folder_base), 1, out, test=["case_005"]) == [*split["train"], "case_003",
                                                                                        "case_004"]  # fmt: skip
    base = out / "nnUNet_preprocessed" / tiny.name
    assert json.loads((base / "splits_final.json").read_text())[1]["val"] == ["case_002"]
    written = nnUNetDatasetBlosc2(str(base / "nnUNetPlans_3d_fullres"))
    assert sorted(written.identifiers) == [f"case_00{i}" for i in range(5)]
    before = nnUNetDatasetBlosc2(str(tree / "nnUNetPlans_3d_fullres"))
    image, labels, _, properties = written.load_case("case_004")
    old_image, old_labels, *_ = before.load_case("case_004")
    np.testing.assert_array_equal(image[:], old_image[:])
    assert (labels[:] != old_labels[:]).any()  # one of an untrained network
    for value, places in properties["class_locations"].items():
        assert all(labels[:][tuple(place)] == value for place in places[:20])
    assert max(map(len, properties["class_locations"].values())) > 0
    np.testing.assert_array_equal(written.load_case("case_000")[1][:], before.load_case("case_000")[1][:])
