"""Mining of pairs with an anatomical embedding: the table of matched points, its file, and sampling from it."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.hashing import sha256_of_file
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.common.options import Options, count, number, text
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.errors import (
    CheckpointCorruptError,
    WeightsIncompatibleError,
    WeightsNotFoundError,
)
from nnunet_invariance.networks.matching import Descriptors, Embedding, describe, locate
from nnunet_invariance.nnunet.cases import Case, Manifest, load_volume
from nnunet_invariance.pretraining.data.alignment import Alignment, MatchedPair, sample_points_in_body
from nnunet_invariance.pretraining.data.embedder import Embedder
from nnunet_invariance.pretraining.data.patients import WHOLE_NAME, patients_of, require_two_patients

logger = logging.getLogger(__name__)

#: The two files of a table, in the folder of the embedding.
TABLE, SUMMARY = "pairs.safetensors", "pairs.json"


@dataclass(frozen=True)
class MiningOptions(Options):
    """Options of the mining of pairs.

    Raises:
        OptionError: a value is out of range.

    >>> MiningOptions(num_points=64).num_partners
    8
    """

    num_points: int = count(256, 1, doc="Body points sampled in every volume.")
    num_partners: int = count(8, 1, doc="Other volumes in which the points of a volume are matched.")
    min_similarity: float = number(0.7, -1, 1, doc="An accepted pair has a larger similarity.")
    max_cycle_error: float = number(
        4.0, 0, float("inf"),
        doc="Largest cycle error of an accepted pair, in fine cells (16 mm in the paper, whose cells have 4 mm).",
    )  # fmt: skip
    patients: str = text(
        WHOLE_NAME, doc="Regular expression whose first group is the patient; pairs join different patients."
    )
    seed: int = count(0, 0, doc="Seed of the points and of the partners.")


@dataclass(frozen=True)
class PairTable:
    """R mined pairs, one per row.

    Attributes:
        first, second: (R,) indices of the two cases.
        first_point, second_point: (R, 3) matched points in voxels of the two cases.
        score: (R,) similarity, in [-1, 1].
        cycle_error: (R,) distance in mm from the first point to the match of its match.
        accepted: (R,) whether similarity and cycle error are both within the limits.
    """

    first: np.ndarray
    second: np.ndarray
    first_point: np.ndarray
    second_point: np.ndarray
    score: np.ndarray
    cycle_error: np.ndarray
    accepted: np.ndarray


def choose_partners(patients: Sequence[str], num_partners: int, rng: np.random.Generator) -> list[list[int]]:
    """Choose, for every volume, the next volumes of other patients in one random order.

    >>> choose_partners(["a", "a", "b"], 8, np.random.default_rng(0))
    [[2], [2], [0, 1]]

    Raises:
        TooFewVolumesError: all volumes are of one patient.
    """
    require_two_patients(patients)
    order = rng.permutation(len(patients)).tolist()
    position_of = {volume: position for position, volume in enumerate(order)}
    partners = []
    for volume, patient in enumerate(patients):
        rest = order[position_of[volume] + 1 :] + order[: position_of[volume]]
        partners.append([other for other in rest if patients[other] != patient][:num_partners])
    return partners


def _move(descriptors: Descriptors, device: torch.device | str) -> Descriptors:
    return Descriptors(*(part.to(device) for part in descriptors))


def _embeddings(embed: Embedder, cases: Sequence[Case], title: str) -> Iterator[tuple[int, np.ndarray, Embedding]]:
    for i, case in enumerate(Progress(cases, desc=f"mining pairs: {title}", unit="volume")):
        image = np.asarray(load_volume(case)[:])
        yield i, image, embed(image)


def mine_pairs(embed: Embedder, cases: Sequence[Case], options: MiningOptions) -> PairTable:
    """Match body points of every volume to its partners, and match the matches back.

    Each volume is embedded three times (for its points, for the matches, and for the matches of the matches), so that
    only one embedding is in memory at a time.

    Raises:
        OptionError: the pattern of the patients does not match a name.
        TooFewVolumesError: all volumes are of one patient.
        NonFiniteEmbeddingError: an embedding contains NaN or infinity.
    """
    rng = np.random.default_rng(options.seed)
    partners = choose_partners(patients_of(cases, options.patients), options.num_partners, rng)
    # Descriptors are kept in host memory: 262 kB per volume, and the same again per pair of volumes.
    points: list[Tensor] = []
    descriptors = []
    for i, image, embedding in _embeddings(embed, cases, "points"):
        points.append(torch.tensor(sample_points_in_body(cases[i], image[0], options.num_points, rng)).float())
        descriptors.append(_move(describe(embedding, points[i].to(embed.device)), "cpu"))
    matches: dict[tuple[int, int], tuple[Tensor, Tensor, Descriptors]] = {}
    for j, _, embedding in _embeddings(embed, cases, "matches"):
        for i in (i for i, chosen in enumerate(partners) if j in chosen):
            match, score = locate(_move(descriptors[i], embed.device), embedding)
            matches[i, j] = match.cpu(), score.cpu(), _move(describe(embedding, match), "cpu")
    rows = []
    for i, _, embedding in _embeddings(embed, cases, "cycle errors"):
        for j in partners[i]:
            match, score, described = matches.pop((i, j))
            back = locate(_move(described, embed.device), embedding)[0].cpu()
            rows.append(_rows(i, j, points[i].numpy(), match.numpy(), score.numpy(), back.numpy(), embed, options))
    return PairTable(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _rows(
    i: int, j: int, points: np.ndarray, matches: np.ndarray, score: np.ndarray, back: np.ndarray, embed: Embedder,
    options: MiningOptions,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """The rows of two volumes, in the order of the columns of :class:`PairTable`."""
    difference = back - points
    cells = np.linalg.norm(difference / np.asarray(embed.head.fine_cell), axis=1)
    error = np.linalg.norm(difference * np.asarray(embed.spacing), axis=1).astype(np.float32)
    accepted = (score > options.min_similarity) & (cells <= options.max_cycle_error)
    first, second = (np.full(len(points), index, np.int32) for index in (i, j))
    return first, second, points, matches, score, error, accepted


class MinedPairs(Alignment):
    """Samples from a table of mined pairs.

    A volume without an accepted pair contributes its most similar pair. Every pair that is not accepted has the score
    -1, because a high similarity with a large cycle error is wrong as well.

    Args:
        cases: in the order of the table.
        table: with at least one row for every case as the first one of a pair.
        sha256: of the table's file.
    """

    def __init__(self, cases: Sequence[Case], table: PairTable, sha256: str = "") -> None:
        super().__init__()
        self.cases, self.table, self.sha256 = tuple(cases), table, sha256
        self.score = np.where(table.accepted, table.score, -1.0)
        self.index = {(case.name, case.folder): i for i, case in enumerate(cases)}
        self.rows = []
        for i in range(len(cases)):
            own = np.flatnonzero(table.first == i)
            accepted = own[table.accepted[own]]
            self.rows.append(accepted if len(accepted) else own[[table.score[own].argmax()]])

    def sample_pair(self, cases: Sequence[Case], rng: np.random.Generator) -> MatchedPair:
        """Sample a volume, then one of its pairs; ``cases`` are those of the table."""
        row = rng.choice(self.rows[rng.integers(len(self.rows))])
        t = self.table
        first, second = self.cases[t.first[row]], self.cases[t.second[row]]
        points = t.first_point[row].astype(float), t.second_point[row].astype(float)
        return MatchedPair(first, points[0], second, points[1], float(self.score[row]))

    def match(self, first: Case, second: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move each point as the nearest mined point of the two volumes, an accepted one if there is one.

        Raises:
            WeightsIncompatibleError: the table has no pair of these two volumes.
        """
        i, j = (self.index.get((case.name, case.folder), -1) for case in (first, second))
        rows = np.flatnonzero((self.table.first == i) & (self.table.second == j))
        if not len(rows):
            msg = f"The table of pairs has no pair of {first.name!r} and {second.name!r}. "
            raise WeightsIncompatibleError(msg + "Mine pairs for these volumes, with a larger num_partners.")
        rows = rows[self.table.accepted[rows]] if self.table.accepted[rows].any() else rows
        points = np.asarray(points, dtype=float)
        distance = np.linalg.norm(points[:, None] - self.table.first_point[rows], axis=2)
        nearest = rows[distance.argmin(1)]
        matches = points + self.table.second_point[nearest] - self.table.first_point[nearest]
        return matches, self.score[nearest]


def save_pairs(folder: Path, table: PairTable, summary: dict[str, Any]) -> None:
    """Write ``pairs.safetensors``, then ``pairs.json`` with its checksum; a table without this file is ignored.

    Raises:
        OutputError: a file cannot be written.
    """
    data = save_tensors({f.name: torch.from_numpy(getattr(table, f.name)) for f in dataclasses.fields(PairTable)})
    (folder / SUMMARY).unlink(missing_ok=True)
    atomic_write(folder / TABLE, lambda file: file.write(data))
    content = json.dumps({**summary, "sha256": hashlib.sha256(data).hexdigest()}, indent=1).encode()
    atomic_write(folder / SUMMARY, lambda file: file.write(content))


def load_pairs(folder: Path, expected: dict[str, Any]) -> PairTable:
    """Read the table that :func:`save_pairs` wrote.

    Args:
        folder: of the two files.
        expected: values that ``pairs.json`` must contain.

    Raises:
        WeightsIncompatibleError: the table was mined from other data, with another embedding, or with other options.
        DamagedFileError: ``pairs.json`` cannot be read.
        CheckpointCorruptError: the table cannot be read, or the two files do not belong together.
    """
    remedy = f"Move {folder / SUMMARY} away, so that the pairs are mined again."
    summary = read_json(folder / SUMMARY, remedy=remedy, form=dict)
    try:
        data = (folder / TABLE).read_bytes()
    except OSError as error:
        raise CheckpointCorruptError(f"{folder / TABLE} cannot be read ({error.strerror}). {remedy}") from error
    for field, value in expected.items():
        if summary.get(field) != value:
            msg = f"{folder / TABLE} was mined for other data or options: {field} is {summary.get(field)!r}, "
            raise WeightsIncompatibleError(f"{msg}expected {value!r}. {remedy}")
    if hashlib.sha256(data).hexdigest() != summary.get("sha256"):
        msg = f"{folder / TABLE} does not match the checksum in {SUMMARY}: it was changed or is truncated. "
        raise CheckpointCorruptError(msg + remedy)
    return PairTable(**{name: tensor.numpy() for name, tensor in load_tensors(data).items()})


def require_embedding(checkpoint: Path) -> None:
    """Check that the anatomical embedding exists.

    Raises:
        WeightsNotFoundError: it does not.
    """
    if not checkpoint.is_file():
        raise WeightsNotFoundError(
            f"--alignment sam needs a finished anatomical embedding, but {checkpoint} does not exist. Run "
            "`nnunet-invariance pretrain sam` for this dataset, plans and configuration, or choose another alignment."
        )


def load_or_mine_pairs(
    folder: Path, checkpoint: Path, manifest: Manifest, options: MiningOptions, device: str = "cpu"
) -> MinedPairs:
    """The pairs of the volumes of a manifest: read from the folder of the embedding, or mined and stored there.

    Raises:
        WeightsNotFoundError: there is no finished embedding.
        InvarianceError: every error of :func:`load_pairs` and :func:`mine_pairs`.
    """
    require_embedding(checkpoint)
    sha256 = sha256_of_file(checkpoint)
    expected = {"manifest_sha256": manifest.sha256, "embedding_sha256": sha256, **options.to_dict()}
    if (folder / SUMMARY).is_file():
        table = load_pairs(folder, expected)
    else:
        patients_of(manifest.cases, options.patients)
        logger.info("mining pairs of %d volumes; they are stored in %s", len(manifest.cases), folder)
        table = mine_pairs(Embedder.load(checkpoint, device), manifest.cases, options)
        save_pairs(folder, table, {**expected, "cases": [c.name for c in manifest.cases], **_statistics(table)})
        logger.info("pairs stored: %s", folder / TABLE)
    pairs = MinedPairs(manifest.cases, table, read_json(folder / SUMMARY, form={"sha256": str})["sha256"])
    rejected = sum(not table.accepted[rows].any() for rows in pairs.rows)
    logger.info(
        "%d mined pairs, %.0f %% of them accepted; volumes without an accepted pair: %d",
        len(table.accepted), 100 * table.accepted.mean(), rejected,
    )  # fmt: skip
    return pairs


def _statistics(table: PairTable) -> dict[str, Any]:
    return {
        "pairs": len(table.accepted),
        "accepted": int(table.accepted.sum()),
        "median_score": round(float(np.median(table.score)), 4),
        "median_cycle_error_mm": round(float(np.median(table.cycle_error)), 3),
    }
