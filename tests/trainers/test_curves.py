"""The panels of ``invariance.png``: every loss, and schedules only where they change."""

from types import SimpleNamespace

import numpy as np

from nnunet_invariance.trainers import curves


def test_the_picture_has_the_panels_that_matter(tmp_path, monkeypatch):
    values = {
        "train_losses": [1.0, 0.5],
        "train_info_nce": [2.0, 2.0],
        "aux_weight": [0.1, 0.1],
        "encoder_lr": [0.01, 0.005],
        "non_finite_steps": [0.0, 0.0],
    }
    drawn, draw = [], curves.draw_history
    monkeypatch.setattr(curves, "draw_history", lambda *args: drawn.append(args) or draw(*args))
    logger = SimpleNamespace(get_value=lambda name, _: values[name])
    curves.draw_curves(logger, list(values), tmp_path / "a.png")
    values |= {"non_finite_steps": [2.0, 2.0], "encoder_lr": [np.nan, 0.01]}
    curves.draw_curves(logger, list(values), tmp_path / "b.png")
    assert [row.keys() - {"epoch"} for row in (drawn[0][0][0], drawn[1][0][0])] == [
        {"train_losses", "train_info_nce", "encoder_lr"},
        {"train_losses", "train_info_nce", "encoder_lr", "non_finite_steps"},
    ]
    assert drawn[0][2]["train_info_nce"] == "auxiliary loss: info nce (lower is better)"
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
