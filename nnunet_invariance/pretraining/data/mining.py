"""Pairs of places mined offline with an anatomical embedding: the table, its file, and drawing from it."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from tqdm import tqdm

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.hashing import sha256_of_file
from nnunet_invariance.errors import (
    CheckpointCorruptError,
    WeightsIncompatibleError,
    WeightsNotFoundError,
)
from nnunet_invariance.networks.matching import Descriptors, describe, locate
from nnunet_invariance.nnunet.cases import Case, Manifest, load_volume
from nnunet_invariance.pretraining.data.alignment import Alignment, Pair, points_in_body
from nnunet_invariance.pretraining.data.embedder import Embedder
from nnunet_invariance.pretraining.data.patients import EVERYONE, patients_of, require_two

logger = logging.getLogger(__name__)

TABLE, SHEET = "pairs.safetensors", "pairs.json"


@dataclasses.dataclass(frozen=True)
class MiningOptions:
    """How pairs are mined.

    Attributes:
        points: body points of every volume.
        partners: other volumes in which each is looked for.
        threshold: least similarity of a pair that is drawn.
        cycle: largest cycle error of a pair that is drawn, in fine cells (the paper's 16 mm at cells of 4 mm).
        patients: pattern whose first group is the patient in a case's name; volumes of one patient are no partners.
        seed: of points and partners.
    """

    points: int = 256
    partners: int = 8
    threshold: float = 0.7
    cycle: float = 4.0
    patients: str = EVERYONE
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class PairTable:
    """R mined pairs: ``source`` and ``target`` (R,) index the cases; ``point`` and ``match`` (R, 3) are in voxels.

    ``score`` (R,) is the similarity and ``cycle_error`` (R,) the miss of the way back in mm; ``good`` (R,) says which
    pass both limits.
    """

    source: np.ndarray
    target: np.ndarray
    point: np.ndarray
    match: np.ndarray
    score: np.ndarray
    cycle_error: np.ndarray
    good: np.ndarray


def choose_partners(patients: Sequence[str], count: int, rng: np.random.Generator) -> list[list[int]]:
    """For every volume up to ``count`` volumes of other patients: those that follow it in one random order.

    Raises:
        TooFewVolumesError: all volumes are of one patient.
    """
    require_two(patients)
    order = rng.permutation(len(patients)).tolist()
    place = {volume: position for position, volume in enumerate(order)}
    partners = []
    for volume, patient in enumerate(patients):
        rest = order[place[volume] + 1 :] + order[: place[volume]]
        partners.append([other for other in rest if patients[other] != patient][:count])
    return partners


def _moved(descriptors: Descriptors, device: torch.device | str) -> Descriptors:
    return Descriptors(*(part.to(device) for part in descriptors))


def mine_pairs(embed: Embedder, cases: Sequence[Case], options: MiningOptions) -> PairTable:
    """Match body points of every volume in its partners, and back.

    Each volume is embedded three times, for its points, its matches and the ways back, so that one embedding is in
    memory at a time.
    """
    rng = np.random.default_rng(options.seed)
    partners = choose_partners(patients_of(cases, options.patients), options.partners, rng)
    sources_of = [[i for i, chosen in enumerate(partners) if j in chosen] for j in range(len(cases))]

    def embedded(what: str):
        for i, case in enumerate(tqdm(cases, desc=f"mining pairs: {what}", unit="volume", disable=None)):
            image = np.asarray(load_volume(case)[:])
            yield i, image, embed(image)

    # descriptors wait in the main memory: 262 kB a volume, and as much again a pair of volumes
    points, wanted = [], []
    for i, image, embedding in embedded("points"):
        points.append(torch.tensor(points_in_body(cases[i], image[0], options.points, rng)).float())
        wanted.append(_moved(describe(embedding, points[i].to(embed.device)), "cpu"))
    found: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, Descriptors]] = {}
    for j, _, embedding in embedded("matches"):
        for i in sources_of[j]:
            match, score = locate(_moved(wanted[i], embed.device), embedding)
            found[i, j] = match.cpu(), score.cpu(), _moved(describe(embedding, match), "cpu")
    rows = []
    spacing, cell = np.asarray(embed.spacing), np.asarray(embed.head.fine_cell)
    for i, _, embedding in embedded("ways back"):
        for j in partners[i]:
            match, score, back = found.pop((i, j))
            miss = locate(_moved(back, embed.device), embedding)[0].cpu().numpy() - points[i].numpy()
            score = score.numpy()
            good = (score > options.threshold) & (np.linalg.norm(miss / cell, axis=1) <= options.cycle)
            which = np.full(len(miss), i, np.int32), np.full(len(miss), j, np.int32)
            error = np.linalg.norm(miss * spacing, axis=1).astype(np.float32)
            rows.append((*which, points[i].numpy(), match.numpy(), score, error, good))
    return PairTable(*(np.concatenate(column) for column in zip(*rows, strict=True)))


class MinedPairs(Alignment):
    """Draws from a table of mined pairs; a volume without a good pair gives its most similar one.

    Pairs beyond either limit have the score -1, whatever their similarity: one that the way back misses is as wrong.

    Args:
        cases: in the order of the table.
        sha256: of the table's file.
    """

    def __init__(self, cases: Sequence[Case], table: PairTable, sha256: str = "") -> None:
        self.cases, self.table, self.sha256 = tuple(cases), table, sha256
        self.score = np.where(table.good, table.score, -1.0)
        self.index = {(case.name, case.folder): i for i, case in enumerate(cases)}
        self.rows = []
        for i in range(len(cases)):
            own = np.flatnonzero(table.source == i)
            good = own[table.good[own]]
            self.rows.append(good if len(good) else own[[table.score[own].argmax()]])

    def draw(self, cases: Sequence[Case], rng: np.random.Generator) -> Pair:
        """A volume, then one of its pairs; ``cases`` are those of the table."""
        row = rng.choice(self.rows[rng.integers(len(self.rows))])
        t = self.table
        source, target = self.cases[t.source[row]], self.cases[t.target[row]]
        return Pair(source, t.point[row].astype(float), target, t.match[row].astype(float), float(self.score[row]))

    def match(self, source: Case, target: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the nearest mined point of these two volumes was moved, good ones first; see :class:`Alignment`.

        Raises:
            WeightsIncompatibleError: the two are no partners in the table.
        """
        i, j = (self.index.get((case.name, case.folder), -1) for case in (source, target))
        rows = np.flatnonzero((self.table.source == i) & (self.table.target == j))
        if not len(rows):
            msg = f"The table of pairs has none of {source.name!r} and {target.name!r}. "
            raise WeightsIncompatibleError(msg + "Mine it for these volumes, with more partners.")
        rows = rows[self.table.good[rows]] if self.table.good[rows].any() else rows
        points = np.asarray(points, dtype=float)
        distance = np.linalg.norm(points[:, None] - self.table.point[rows], axis=2)
        nearest = rows[distance.argmin(1)]
        moved = points + self.table.match[nearest] - self.table.point[nearest]
        return moved, self.score[nearest]


def save_pairs(folder: Path, table: PairTable, sheet: dict[str, Any]) -> None:
    """Write ``pairs.safetensors``, then ``pairs.json`` with its checksum: without the second the first counts for none.

    Raises:
        OutputError
    """
    data = save_tensors({f.name: torch.from_numpy(getattr(table, f.name)) for f in dataclasses.fields(PairTable)})
    (folder / SHEET).unlink(missing_ok=True)
    atomic_write(folder / TABLE, lambda file: file.write(data))
    sheet = {**sheet, "sha256": hashlib.sha256(data).hexdigest()}
    atomic_write(folder / SHEET, lambda file: file.write(json.dumps(sheet, indent=1).encode()))


def load_pairs(folder: Path, expected: dict[str, Any]) -> PairTable:
    """Read what :func:`save_pairs` wrote.

    Raises:
        WeightsIncompatibleError: it was mined from other data, with another embedding or other options than
            ``expected`` says. CheckpointCorruptError: one cannot be read, or the two do not belong together.
    """
    remedy = f"Move {folder / SHEET} away and the pairs are mined anew."
    try:
        sheet, data = dict(json.loads((folder / SHEET).read_text())), (folder / TABLE).read_bytes()
    except (OSError, ValueError, TypeError) as error:
        msg = f"The mined pairs in {folder} cannot be read ({type(error).__name__}: {error}). "
        raise CheckpointCorruptError(msg + remedy) from error
    for field, value in expected.items():
        if sheet.get(field) != value:
            msg = f"{folder / TABLE} was mined for other data or settings: {field} is {sheet.get(field)!r}, "
            raise WeightsIncompatibleError(f"{msg}expected {value!r}. {remedy}")
    if hashlib.sha256(data).hexdigest() != sheet.get("sha256"):
        msg = f"{folder / TABLE} does not match the checksum in {SHEET}: it was changed or is truncated. "
        raise CheckpointCorruptError(msg + remedy)
    return PairTable(**{name: tensor.numpy() for name, tensor in load_tensors(data).items()})


def mined_pairs(
    folder: Path, checkpoint: Path, manifest: Manifest, options: MiningOptions, device: str = "cpu"
) -> MinedPairs:
    """The pairs of these data: read from the embedding's folder, or mined and stored there.

    Raises:
        WeightsNotFoundError: there is no finished embedding. Everything of :func:`load_pairs`, :func:`mine_pairs`.
    """
    if not checkpoint.is_file():
        msg = f"--alignment sam needs a finished anatomical embedding, but there is no {checkpoint}. "
        remedy = (
            "Run `nnunet-invariance pretrain sam` for this dataset, plans and configuration, or give another value."
        )
        raise WeightsNotFoundError(msg + remedy)
    sha256 = sha256_of_file(checkpoint)
    expected = {"manifest_sha256": manifest.sha256, "embedding_sha256": sha256, **dataclasses.asdict(options)}
    if (folder / SHEET).is_file():
        table = load_pairs(folder, expected)
    else:
        patients_of(manifest.cases, options.patients)
        logger.info("mining pairs in %d volumes, once; they are kept in %s", len(manifest.cases), folder)
        table = mine_pairs(Embedder.load(checkpoint, device), manifest.cases, options)
        save_pairs(folder, table, {**expected, "cases": [c.name for c in manifest.cases], **_summary(table)})
        logger.info("pairs stored: %s", folder / TABLE)
    pairs = MinedPairs(manifest.cases, table, json.loads((folder / SHEET).read_text())["sha256"])
    without = sum(not table.good[rows].any() for rows in pairs.rows)
    logger.info(
        "%d mined pairs, %.0f %% of them within the limits; volumes without any: %d",
        len(table.good), 100 * table.good.mean(), without,
    )  # fmt: skip
    return pairs


def _summary(table: PairTable) -> dict[str, Any]:
    return {
        "pairs": len(table.good),
        "good": int(table.good.sum()),
        "median_score": round(float(np.median(table.score)), 4),
        "median_cycle_error_mm": round(float(np.median(table.cycle_error)), 3),
    }
