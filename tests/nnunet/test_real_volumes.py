"""Real scans through the whole of pre-training; skipped where the folder of real volumes is not beside the checkout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nnunet_invariance.nnunet.cases import load_volume, make_manifest
from nnunet_invariance.weights.checkpoint import load_checkpoint
from tests.helpers.pretraining_runs import run_pretraining
from tests.helpers.threads import preprocess_scans_in_threads

HIPPOCAMPUS = Path(__file__).parents[3] / "shared" / "data" / "Dataset004_Hippocampus" / "imagesTr"


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the real volumes (../shared/data) are not beside this checkout")
def test_real_scans_are_preprocessed_and_pretrained_on(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    preprocess_scans_in_threads(monkeypatch)
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in sorted(HIPPOCAMPUS.glob("*.nii.gz"))[:4]:
        shutil.copy(path, scans)
    cache = tiny.preprocessed / tiny.name / "nnunet_invariance_images"
    try:
        settings = ["epochs=1", "iterations=3", "workers=0", "head_width=64", "num_prototypes=64"]
        path = run_pretraining("alice", tiny.name, "3d_fullres", device="cpu", images=[scans], settings=settings)
        manifest = json.loads((path.parent / "manifest.json").read_text())
        real = [c["name"] for c in manifest["cases"] if c["name"].startswith("hippocampus")]
        assert len(real) == 4
        assert manifest["skipped"] == []
        cases = make_manifest([next(cache.glob("*/scans_*/"))], 1, (4, 4, 4), 4).cases
        for case in cases:  # z-scored by nnU-Net, whatever the scanner's scale was
            volume = np.asarray(load_volume(case)[:])
            assert abs(volume.mean()) < 0.1
            assert 0.9 < volume.std() < 1.1
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    history = load_checkpoint(path).metadata["progress"]["history"]
    assert all(np.isfinite(value) for value in history[0].values())
