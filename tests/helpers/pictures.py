"""The pictures that a training draws after an epoch; drawing them takes longer than an epoch on a tiny data set."""

from pathlib import Path
from typing import IO, Any

import pytest
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from nnunet_invariance.pretraining.engine import history, samples
from nnunet_invariance.trainers import curves

_PNG = b"\x89PNG\r\n\x1a\n"
_DRAWN = tuple(
    (place, name, getattr(place, name))
    for place, name in (
        (LocalLogger, "plot_progress_png"),
        (history, "draw_history"),
        (curves, "draw_history"),
        (samples, "draw_panels"),
    )
)


class _NoFigure:
    def savefig(self, file: IO[bytes], **_: Any) -> None:
        file.write(_PNG)


def draw_no_curves(patch: pytest.MonkeyPatch) -> None:
    """Let trainings of this process write files without a picture."""
    patch.setattr(LocalLogger, "plot_progress_png", lambda self, out: Path(out, "progress.png").write_bytes(_PNG))
    for place in (history, curves):
        patch.setattr(place, "draw_history", lambda rows, *_: _NoFigure())
    patch.setattr(samples, "draw_panels", lambda columns, heading: _PNG)


def draw_curves(patch: pytest.MonkeyPatch) -> None:
    """Undo :func:`draw_no_curves`, for a test that looks at the pictures."""
    for place, name, original in _DRAWN:
        patch.setattr(place, name, original)
