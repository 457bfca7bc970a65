"""Compare translated images with the real ones for each pair of modalities; writes a table and an HTML report."""

import html
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.csv_files import read_csv, write_csv
from nnunet_invariance.common.html import details, inline, lead, notice, page, table
from nnunet_invariance.common.json_files import read_json, write_text
from nnunet_invariance.common.pictures import panels, png
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.errors import ImagesFolderError
from nnunet_invariance.evaluation.protocols.missing_modality import JOIN
from nnunet_invariance.modality_translation.checkerboard import nyquist_peak
from nnunet_invariance.modality_translation.metrics import plain_scores, release_scores
from nnunet_invariance.modality_translation.translator import ModalityTranslator
from nnunet_invariance.nnunet.grids import check_case
from nnunet_invariance.nnunet.missing_channels import find_cases
from nnunet_invariance.nnunet.missing_files import with_images

logger = logging.getLogger(__name__)

METRICS = ("psnr", "nmse", "ssim", "release_psnr", "release_nmse", "release_ssim", "checkerboard")
CONVENTION = ("PSNR", "NMSE", "SSIM")
HEAD = ("from", "to", "cases", *CONVENTION, *(f"{name}, release" for name in CONVENTION), "checkerboard")
LEAST_PEAK = 1e-6  # of a real image, so that nothing is divided by 0
SCORES, EXAMPLES = "scores.csv", "examples.png"
CONVENTIONS = """<p>Plain: raw intensities of the whole volume, data range of the real image, NMSE = sum of squared
errors divided by the sum of squares of the real image. Release: as in the published code of PUIR (arXiv 2411.06106),
but with each image normalised separately: z-scores over all voxels, background of the real image (z &lt; -0.35) copied
into the predicted image, the larger data range of the two images, NMSE = mean squared error. The two conventions
are not comparable. Checkerboard: energy at the Nyquist frequency relative to that just below it in the predicted image,
divided by the same in the real image; far above 1 is a pattern that changes from voxel to voxel. Values are mean and
standard deviation over cases.</p>"""


@dataclass(frozen=True)
class PairScore:
    """Scores of one case for one set of source modalities and one target modality; PSNR in dB.

    >>> PairScore("T1", "T2", "case_000", 30.0, 0.01, 0.9, 31.0, 0.02, 0.95, 1.0).target
    'T2'
    """

    source: str
    target: str
    case: str
    psnr: float
    nmse: float
    ssim: float
    release_psnr: float
    release_nmse: float
    release_ssim: float
    checkerboard: float


def evaluate_translation(
    translator: ModalityTranslator,
    images: Path,
    out: Path,
    subsets: Sequence[tuple[int, ...]],
    seen: Sequence[str] = (),
) -> Path:
    """Score the translation from each subset to every other modality; returns the path of ``report.html``.

    Args:
        images: folder with files ``CASE_0000`` and so on; a missing modality (no file, or a constant image) is neither
            source nor target in that case.
        out: output folder for a table, example images and ``report.html``.
        subsets: sets of source modalities, by channel index.
        seen: training cases of the translator; the report lists those that are in ``images``.

    Raises:
        ImagesFolderError: the folder contains no image, the channels of a case have different grids, or no case has
            both a source and a target modality.
        VolumeError: an image is damaged.
        OutputError: ``out`` cannot be written.
    """
    names, ending = translator.planned.channel_names, translator.planned.dataset_json["file_ending"]
    cases = find_cases(images, ending, names)
    for files in cases.values():
        check_case(list(files.values()))
    rows: list[PairScore] = []
    picture = b""
    for case, files in Progress(cases.items(), desc="translating and scoring", unit="case"):
        real = {c: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for c, path in with_images(files).items()}
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
            f"No case in {images} has all modalities of a source and another modality, so there is nothing to score. "
            "Give cases with several modalities."
        )
    write_csv(out / SCORES, rows, PairScore)
    atomic_write(out / EXAMPLES, lambda file: file.write(picture))
    text = _page(translator.planned.name, rows, picture, sorted(set(cases) & set(seen)))
    write_text(out / "report.html", text)
    return out / "report.html"


def seen_cases(checkpoint: Path) -> list[str]:
    """Names of the training cases from the manifest beside a checkpoint; empty if there is no manifest."""
    manifest = checkpoint.parent / "manifest.json"
    return [
        case["name"] for case in read_json(manifest, default={"cases": []}, form={"cases": [{"name": str}]})["cases"]
    ]


def _score(
    names: Sequence[str], subset: tuple[int, ...], target: int, case: str, real: np.ndarray, predicted: np.ndarray
) -> PairScore:
    found = predicted[target]
    peaks = nyquist_peak(found) / max(nyquist_peak(real), LEAST_PEAK)
    scores = (*plain_scores(real, found), *release_scores(real, found), peaks)
    return PairScore(JOIN.join(names[c] for c in subset), names[target], case, *scores)


def read_pairs(folder: Path) -> list[PairScore]:
    """Read the scores that :func:`evaluate_translation` wrote to a folder."""
    return read_csv(folder / SCORES, PairScore)


def summarise(rows: Sequence[PairScore]) -> list[tuple[str, ...]]:
    """Summary row per source and target: number of cases, and mean (standard deviation) of each metric."""
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


def headline(rows: Sequence[PairScore]) -> str:
    """The pairs of modalities with the smallest and the largest error, in one sentence."""
    means = {
        pair: float(np.mean([row.nmse for row in rows if (row.source, row.target) == pair]))
        for pair in dict.fromkeys((row.source, row.target) for row in rows)
    }
    (source, target), (other, last) = min(means, key=lambda pair: means[pair]), max(means, key=lambda pair: means[pair])
    text = f"{source} to {target} has the smallest error: NMSE {means[source, target]:.3f}, where 0 is perfect and a "
    text += "blank image has 1"
    return f"{text}; {other} to {last} has the largest: {means[other, last]:.3f}." if len(means) > 1 else f"{text}."


def _page(dataset: str, rows: Sequence[PairScore], picture: bytes, seen: Sequence[str]) -> str:
    title = f"modality translation: {dataset}"
    parts = [f"<h1>{html.escape(title)}</h1>", lead(headline(rows))]
    if seen:
        parts.append(notice(f"The translator was trained on {len(seen)} of these cases: {', '.join(seen)}."))
    alternative = "Real images in the first row, then the images predicted from each source"
    parts += [f"<h2>{html.escape(rows[0].case)}</h2><p>{alternative}.</p>", inline(picture, alternative)]
    parts += ["<h2>From each source to each other modality</h2>", table(HEAD, summarise(rows), 7)]
    parts.append(details("What do the columns mean?", CONVENTIONS))
    return page(title, "\n".join(parts), width=72)


def _grid(
    names: Sequence[str], real: Mapping[int, np.ndarray], predicted: Mapping[tuple[int, ...], np.ndarray]
) -> bytes:
    """PNG of middle slices, one column per modality; each column uses the intensity window of the real image."""
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
