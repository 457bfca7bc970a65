"""Probe frozen networks on one data set: fit on few labelled cases, and score on held-out labelled cases."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_invariance.common.options import Options, count, number, option
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.errors import OptionError
from nnunet_invariance.evaluation.protocols.splits import draw_subsets, draw_test_cases
from nnunet_invariance.networks.hypercolumns import (
    HypercolumnMaps,
    compute_hypercolumns,
    linear_map,
    sample_hypercolumns,
)
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.pretraining.measures.label_retrieval import label_retrieval
from nnunet_invariance.probing.linear import LinearProbe, fit_linear_probe
from nnunet_invariance.probing.samples import LabelledPatch, load_patch, sample_voxels
from nnunet_invariance.weights.transfer import load_network, load_pretrained

logger = logging.getLogger(__name__)

ALL_MAPS = "all"
RETRIEVAL_VOXELS = 200
#: Seed of the first network with random weights.
FIRST_RANDOM = 1000


def _is_shots(value: object) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(k, int) and k >= 1 for k in value)


@dataclass(frozen=True)
class ProbeOptions(Options):
    """Settings of a probe.

    >>> ProbeOptions(shots=(1, 10)).draws
    3

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    shots: tuple[int, ...] = option(
        (1, 5), "a tuple of whole numbers of at least 1", _is_shots, "Labelled cases to fit on."
    )
    draws: int = count(3, 1, doc="Random choices of the labelled cases per number of shots.")
    test_cases: int = count(20, 1, doc="Held-out labelled cases; at most half of the labelled cases are used.")
    random_networks: int = count(5, 0, doc="Networks with random weights that are probed beside the checkpoints.")
    voxels_per_class: int = count(
        1000, 10, doc="Voxels per class and case to fit on; the background has four times as many."
    )
    l2: float = number(1e-2, 0, 100, doc="Weight of the L2 penalty of the logistic regression.")
    seed: int = count(0, 0, doc="Seed of the choice of cases and voxels and of the random networks.")


@dataclass
class ProbeScores:
    """Scores of one network.

    >>> scores = ProbeScores("mae", False, {(1, "all"): np.array([[[0.5, 0.7]]])})
    >>> scores.mean(1)
    0.6

    Attributes:
        dice: by number of shots and map name (:data:`ALL_MAPS`: the whole hypercolumn), an array
            (draws, test cases, foreground classes); NaN where the class is neither present nor predicted.
        retrieval: share of voxels whose nearest voxel of another case has the same label, per pair of cases.
        random: whether the network has random weights.
    """

    name: str
    random: bool
    dice: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    retrieval: list[float] = field(default_factory=list)

    def mean(self, shots: int, maps: str = ALL_MAPS) -> float:
        """Mean Dice over draws, cases and foreground classes."""
        return float(np.nanmean(np.nanmean(self.dice[shots, maps], axis=2)))


@dataclass(frozen=True)
class ProbeResult:
    """Scores of all networks, and the cases that they were computed on.

    >>> ProbeResult((), ("left", "right"), ("encoder_0",), ("case_1",), ("case_2",), (), ProbeOptions()).chance
    0.3333333333333333
    """

    scores: tuple[ProbeScores, ...]
    classes: tuple[str, ...]
    maps: tuple[str, ...]
    test: tuple[str, ...]
    train: tuple[str, ...]
    incomplete: tuple[str, ...]
    options: ProbeOptions

    @property
    def chance(self) -> float:
        """Chance level of :attr:`ProbeScores.retrieval`, whose classes are balanced."""
        return 1 / (len(self.classes) + 1)


Branch = Literal["teacher", "student"]


def random_network(planned: PlannedDataset, seed: int) -> nn.Module:
    """Build the planned network with nnU-Net's initialisation from a seed."""
    channels = len(planned.channel_names)
    architecture = Architecture.from_plans(planned.configuration.configuration["architecture"], channels, channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture.build()


def load_probed_network(planned: PlannedDataset, path: Path, branch: Branch | None = None) -> nn.Module:
    """Build the planned network and load encoder and decoder of a checkpoint; the log names what stays random.

    Stages that are deeper than the file may stay random.

    Raises:
        WeightsIncompatibleError, WeightsNotFoundError, CheckpointCorruptError: the file does not fit these plans.
    """
    checkpoint, chosen = load_network(path, branch)
    network = random_network(planned, 0)
    report = load_pretrained(network, checkpoint, transfer="encoder+decoder", branch=chosen, allow_deeper_network=True)
    logger.info("%s (%s): encoder %.0f %%, decoder %s", path, chosen, 100 * report.coverage, report.decoder)
    return network


def probe(
    planned: PlannedDataset,
    networks: Mapping[str, nn.Module],
    labelled: Sequence[str],
    options: ProbeOptions | None = None,
    device: str = "cpu",
    seen: Iterable[str] = (),
) -> ProbeResult:
    """Fit linear probes on frozen hypercolumns and score them on held-out cases.

    Every case contributes the patch around its labelled region, of the planned size. A probe is a multinomial logistic
    regression (:func:`fit_linear_probe`) on sampled voxels of the labelled cases.

    Args:
        networks: networks by name; ``options.random_networks`` networks with random weights are probed as well.
        labelled: names of preprocessed cases with labels.
        seen: names of cases that a pre-training has seen; they are never test cases.

    Raises:
        ComparisonError: there are too few labelled cases for these options.
        OptionError: there is no network to probe.
    """
    options = options or ProbeOptions()
    if not networks and not options.random_networks:
        raise OptionError("There is no network to probe. Name checkpoints or methods, or probe random networks.")
    run = prepare_probe(planned, labelled, options, device, seen)
    manager = planned.plans.get_label_manager(planned.dataset_json)
    classes = _foreground_classes(planned.dataset_json["labels"], manager.all_labels)
    random = {f"random {i}": random_network(planned, FIRST_RANDOM + i) for i in range(options.random_networks)}
    scores = []
    with Progress(total=(len(networks) + len(random)) * len(run.patches), desc="probe", unit="case") as bar:
        for name, network in {**networks, **random}.items():
            scores.append(run.score(name, network.to(device), name in random, bar.update))
            network.cpu()
    incomplete = tuple(n for n, patch in run.patches.items() if not patch.complete)
    return ProbeResult(tuple(scores), classes, run.maps, run.test, run.train, incomplete, options)


def prepare_probe(
    planned: PlannedDataset,
    labelled: Sequence[str],
    options: ProbeOptions,
    device: str = "cpu",
    seen: Iterable[str] = (),
    each_map: bool = True,
) -> "ProbeRun":
    """Choose and read the cases of a probe; arguments and errors as for :func:`probe`.

    Args:
        each_map: whether every feature map is probed by itself as well.
    """
    subsets, test = _split(labelled, options, tuple(seen))
    manager = planned.plans.get_label_manager(planned.dataset_json)
    train = sorted({name for cases in subsets.values() for draw in cases for name in draw})
    folder, size = str(planned.folder), planned.patch_size
    patches = {n: load_patch(folder, n, size, manager.ignore_label) for n in [*train, *test]}
    num_classes = max(map(int, manager.all_labels)) + 1
    return ProbeRun(patches, subsets, test, num_classes, options, torch.device(device), each_map)


def _split(
    labelled: Sequence[str], options: ProbeOptions, seen: tuple[str, ...]
) -> tuple[dict[int, tuple[tuple[str, ...], ...]], tuple[str, ...]]:
    """The labelled cases by number of shots and draw, and the test cases."""
    test = draw_test_cases(labelled, min(options.test_cases, len(labelled) // 2), options.seed, seen)
    pool = sorted(set(labelled) - set(test))
    subsets = {
        shots: tuple(subset.train for subset in draw_subsets(pool, [shots], options.draws, 1, options.seed))
        for shots in options.shots
    }
    return subsets, tuple(test)


def _foreground_classes(labels: Mapping[str, object], values: Iterable[int]) -> tuple[str, ...]:
    """Names of the foreground labels in the order of their values."""
    names = {value: name for name, value in labels.items() if isinstance(value, int)}
    return tuple(names.get(int(value), str(value)) for value in values if value > 0)


class ProbeRun:
    """The cases of a probe, and the computations on them for each network; :func:`prepare_probe` makes one."""

    def __init__(
        self,
        patches: dict[str, LabelledPatch],
        subsets: dict[int, tuple[tuple[str, ...], ...]],
        test: tuple[str, ...],
        num_classes: int,
        options: ProbeOptions,
        device: torch.device,
        each_map: bool,
    ) -> None:
        self.patches, self.subsets, self.test, self.each_map = patches, subsets, test, each_map
        self.train = tuple(sorted({name for draws in subsets.values() for cases in draws for name in cases}))
        self.num_classes, self.options, self.device = num_classes, options, device
        self.maps: tuple[str, ...] = ()
        generator = torch.Generator().manual_seed(options.seed)
        self.voxels = {
            n: sample_voxels(p.labels, num_classes, options.voxels_per_class, generator) for n, p in patches.items()
        }

    @torch.no_grad()
    def score(
        self, name: str, network: nn.Module, random: bool = False, after_case: Callable[[], object] = lambda: None
    ) -> ProbeScores:
        """Fit every probe of one network, which is on the device, and score it on the test cases."""
        network.eval()
        scores = ProbeScores(name, random)
        columns: dict[str, Tensor] = {}
        for case in self.train:
            columns[case] = self._columns(case, self._maps(network, case))
            after_case()
        probes = self._fit(columns)
        dice: dict[tuple[int, str], list[list[np.ndarray]]] = {key: [] for key in probes}
        previous: tuple[Tensor, Tensor] | None = None
        for case in self.test:
            maps = self._maps(network, case)
            for key, fitted in probes.items():
                own = maps if key[1] == ALL_MAPS else maps.only(key[1])
                dice[key].append([self._dice(case, own, classifier) for classifier in fitted])
            previous = self._retrieve(case, maps, previous, scores.retrieval)
            after_case()
        # test cases x draws x classes -> draws x test cases x classes
        scores.dice = {key: np.asarray(rows).transpose(1, 0, 2) for key, rows in dice.items()}
        return scores

    def _maps(self, network: nn.Module, case: str) -> HypercolumnMaps:
        maps = compute_hypercolumns(network, self.patches[case].image.to(self.device))
        self.maps, self.channels = maps.names, maps.channels
        return maps

    def _columns(self, case: str, maps: HypercolumnMaps) -> Tensor:
        size = self.patches[case].labels.shape
        return sample_hypercolumns(maps, size, self.voxels[case][0][None].to(self.device))[0].cpu()

    def _fit(self, columns: dict[str, Tensor]) -> dict[tuple[int, str], list[LinearProbe]]:
        """Fit probes for every number of shots and draw: one on the whole hypercolumn, and one on each map."""
        ends = np.cumsum([0, *self.channels]).tolist()
        parts = {ALL_MAPS: (0, ends[-1])}
        if self.each_map:
            parts |= {m: (ends[i], ends[i + 1]) for i, m in enumerate(self.maps)}
        fitted: dict[tuple[int, str], list[LinearProbe]] = {}
        for shots, draws in self.subsets.items():
            for cases in draws:
                features = torch.cat([columns[c] for c in cases])
                labels = torch.cat([self.voxels[c][1] for c in cases])
                for name, (low, high) in parts.items():
                    own = fit_linear_probe(features[:, low:high], labels, self.num_classes, self.options.l2)
                    on_device = LinearProbe(own.weight.to(self.device), own.bias.to(self.device))
                    fitted.setdefault((shots, name), []).append(on_device)
        return fitted

    def _dice(self, case: str, maps: HypercolumnMaps, classifier: LinearProbe) -> np.ndarray:
        """Dice of every foreground class in the patch; NaN where it is neither present nor predicted."""
        labels = self.patches[case].labels.to(self.device)
        logits = linear_map(maps, classifier.weight, classifier.bias, labels.shape)[0]
        known = labels >= 0
        predicted = logits.argmax(0)[known]
        truth = labels[known]
        counts = torch.bincount(truth * self.num_classes + predicted, minlength=self.num_classes**2)
        confusion = counts.reshape(self.num_classes, self.num_classes).double()
        both = confusion.sum(0) + confusion.sum(1)
        return (2 * confusion.diagonal() / both).cpu().numpy()[1:]

    def _retrieve(
        self, case: str, maps: HypercolumnMaps, previous: tuple[Tensor, Tensor] | None, found: list[float]
    ) -> tuple[Tensor, Tensor]:
        """Label retrieval from this case to the one before it, on standardised features of balanced voxels."""
        _, labels = self.voxels[case]
        columns = self._columns(case, maps)
        rows = torch.cat([(labels == v).nonzero()[:RETRIEVAL_VOXELS, 0] for v in range(self.num_classes)])
        features = columns[rows]
        features = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
        if previous is not None:
            found.append(float(label_retrieval(features, labels[rows], *previous)))
        return features, labels[rows]
