"""Scores of the translation from each modality to each other against the real images, as tables and a page."""

import html
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.csv_files import read_csv, write_csv
from nnunet_invariance.common.html import inline, page, table
from nnunet_invariance.common.json_files import read_json, write_text
from nnunet_invariance.errors import ImagesFolderError
from nnunet_invariance.evaluation.protocols.missing_modality import JOIN
from nnunet_invariance.evaluation.report.pictures import panels, png
from nnunet_invariance.modality_translation.metrics import plain_scores, release_scores
from nnunet_invariance.modality_translation.translator import ModalityTranslator
from nnunet_invariance.nnunet.grids import check_case
from nnunet_invariance.nnunet.missing_channels import find_cases

logger = logging.getLogger(__name__)

METRICS = ("psnr", "nmse", "ssim", "release_psnr", "release_nmse", "release_ssim")
HEAD = ("from", "to", "cases", "PSNR", "NMSE", "SSIM", "PSNR, release", "NMSE, release", "SSIM, release")
SCORES, EXAMPLES = "scores.csv", "examples.png"
CONVENTIONS = """<p>Plain: whole volume, raw intensities, data range of the real image, NMSE = sum of squared errors
over sum of squares. Release: as the code of PUIR (arXiv 2411.06106) does it, but each image by itself: z-scores over
all voxels, background of the real image (z &lt; -0.35) put into the predicted one, data range the larger of both,
NMSE = mean squared error. The two are not to be compared with each other. Mean and standard deviation over cases.
</p>"""


@dataclass(frozen=True)
class PairScore:
    """One case, from one set of modalities to one other; PSNR in dB."""

    source: str
    target: str
    case: str
    psnr: float
    nmse: float
    ssim: float
    release_psnr: float
    release_nmse: float
    release_ssim: float


def evaluate_translation(
    translator: ModalityTranslator,
    images: Path,
    out: Path,
    subsets: Sequence[tuple[int, ...]],
    seen: Sequence[str] = (),
) -> Path:
    """Score the translation from each subset to every other modality; writes a table, a picture and ``report.html``.

    Args:
        images: complete cases, ``CASE_0000`` and so on; a modality that a case lacks (no file, or a constant image) is
            neither source nor target there.
        out: folder of the three files.
        subsets: of the modalities, by index.
        seen: cases that the translator was trained on; the page names those among the images.

    Raises:
        ImagesFolderError: no images, different grids, or no pair to score.
        VolumeError: an image is damaged.
        OutputError: ``out`` cannot be written.
    """
    names, ending = translator.planned.channel_names, translator.planned.dataset_json["file_ending"]
    cases = find_cases(images, ending, names)
    for files in cases.values():
        check_case(list(files.values()))
    rows: list[PairScore] = []
    picture = b""
    for case, files in tqdm(cases.items(), desc="cases", unit="case", disable=None):
        real = {c: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for c, path in files.items()}
        real = {c: image for c, image in real.items() if np.ptp(image) > 0}
        predicted = {
            s: translator.predict({c: files[c] for c in s})
            for s in subsets
            if set(s) <= set(real) and set(real) - set(s)
        }
        for s, d in predicted.items():
            rows += [_score(names, s, target, case, real[target], d) for target in real if target not in s]
        picture = picture or (_grid(names, real, predicted) if predicted else b"")
    if not rows:
        raise ImagesFolderError(
            f"No case in {images} has the modalities of a source and another one, so there is nothing to score. Give "
            "cases with several modalities."
        )
    write_csv(out / SCORES, rows, PairScore)
    atomic_write(out / EXAMPLES, lambda file: file.write(picture))
    text = _page(translator.planned.name, rows, picture, sorted(set(cases) & set(seen)))
    write_text(out / "report.html", text)
    return out / "report.html"


def seen_cases(checkpoint: Path) -> list[str]:
    """Cases of the manifest beside a checkpoint; none where there is no manifest."""
    manifest = checkpoint.parent / "manifest.json"
    return [case["name"] for case in read_json(manifest, default={"cases": []})["cases"]]


def _score(
    names: Sequence[str], subset: tuple[int, ...], target: int, case: str, real: np.ndarray, predicted: np.ndarray
) -> PairScore:
    scores = (*plain_scores(real, predicted[target]), *release_scores(real, predicted[target]))
    return PairScore(JOIN.join(names[c] for c in subset), names[target], case, *scores)


def read_pairs(folder: Path) -> list[PairScore]:
    """The rows that :func:`evaluate_translation` left in a folder."""
    return read_csv(folder / SCORES, PairScore)


def summarise(rows: Sequence[PairScore]) -> list[tuple[str, ...]]:
    """A line for each source and target: the number of cases, and mean and standard deviation of every metric."""
    lines = []
    for source, target in dict.fromkeys((row.source, row.target) for row in rows):
        own = [row for row in rows if (row.source, row.target) == (source, target)]
        cells = []
        for metric in METRICS:
            values = np.array([getattr(row, metric) for row in own])
            digits = 1 if "psnr" in metric else 3
            cells.append(f"{values.mean():.{digits}f} ({values.std():.{digits}f})")
        lines.append((source, target, str(len(own)), *cells))
    return lines


def _page(dataset: str, rows: Sequence[PairScore], picture: bytes, seen: Sequence[str]) -> str:
    title = f"modality translation: {dataset}"
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if seen:
        what = f"The translator was trained on {len(seen)} of these cases: {', '.join(seen)}."
        parts.append(f'<p class="notice">{html.escape(what)}</p>')
    parts += ["<h2>From each source to each other modality</h2>", CONVENTIONS]
    parts.append(table(HEAD, summarise(rows), 7))
    alternative = "Real images in the first row, then the images predicted from each source"
    parts += [f"<h2>{html.escape(rows[0].case)}</h2><p>{alternative}.</p>", inline(picture, alternative)]
    return page(title, "\n".join(parts), width=72)


def _grid(
    names: Sequence[str], real: Mapping[int, np.ndarray], predicted: Mapping[tuple[int, ...], np.ndarray]
) -> bytes:
    """Middle slices: a column for each modality, all of a column in the grey values of the real image."""
    figure, axes = panels(1 + len(predicted), len(real))
    for column, (channel, image) in enumerate(real.items()):
        low, high = np.percentile(image, (0.5, 99.5))
        for row, (subset, images) in enumerate([((), None), *predicted.items()]):
            axis = axes[row, column]
            axis.set_axis_off()
            if channel in subset:
                axis.text(0.5, 0.5, "source", ha="center", va="center", transform=axis.transAxes)
                continue
            shown = image if images is None else images[channel]
            axis.imshow(shown[len(shown) // 2], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            start = "real" if images is None else f"from {JOIN.join(names[c] for c in subset)}"
            axis.set_title(f"{names[channel]}, {start}", fontsize=8)
    return png(figure)
