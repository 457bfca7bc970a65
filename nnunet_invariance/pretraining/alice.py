"""Alice on nnU-Net's planned encoder (arXiv 2302.05615): self-distillation, CASA and masked reconstruction."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import Dataset

from nnunet_invariance.augmentation.device_views import apply_intensity, sample_intensity, turned
from nnunet_invariance.augmentation.masking import sample_block_mask, upsample_cells, valid_cells
from nnunet_invariance.errors import OptionError
from nnunet_invariance.losses.masked_reconstruction import MaskedReconstructionLoss
from nnunet_invariance.losses.self_distillation import SelfDistillationLoss
from nnunet_invariance.networks.casa import CrossAttentionAlignment
from nnunet_invariance.networks.distillation_head import DistillationHead
from nnunet_invariance.networks.planned import cumulative_strides, decode, to_tokens
from nnunet_invariance.pretraining.alignment import Alignment, BodyCoordinates, RandomPlaces, SameVolume
from nnunet_invariance.pretraining.cases import Manifest
from nnunet_invariance.pretraining.crops import PairedCrops
from nnunet_invariance.pretraining.distributed import Ranks
from nnunet_invariance.pretraining.method import Method, Setup, StepOutput
from nnunet_invariance.pretraining.mining import EVERYONE, MiningOptions, mined_pairs
from nnunet_invariance.weights.locate import FINAL

#: Beside "sam", the pairs that are mined with an anatomical embedding.
ALIGNMENTS = {"coordinates": BodyCoordinates, "same-volume": SameVolume, "random": RandomPlaces}


@dataclass(frozen=True)
class AliceOptions:
    """Settings of ``pretrain alice``, given as ``--set field=value``.

    Attributes:
        pairs: pairs of crops a step and rank; 0 means half the planned batch size, at least 1.
        mask_ratio: share of the cells that is hidden from the student.
        weight_inter: weight of the class-token term between the two volumes of a pair.
        weight_intra: weight of the token term within one volume.
        weight_mim: weight of masked reconstruction; -1 chooses it: 10 on images scaled to
            [0, 1], 1 on z-scored ones.
        student_temperature: softmax temperature of the student.
        teacher_temperature: the teacher's, after its warm-up.
        teacher_temperature_start: the teacher's in step 0; rises linearly over the first 3 % of the run.
        ema_start: the teacher's momentum in step 0; goes to 1 along a cosine.
        alignment: what aligns the crops of a pair: "coordinates", "sam" (pairs mined by ``pretrain sam``),
            "same-volume" or "random"; the flag ``--pairs``.
        patients: pattern whose first group is the patient in a case's name, for mining; the flag ``--patients``.
        hidden: width of the projection head's MLP; 0 means eight times the token stage's channels, at most 2048.
    """

    pairs: int = 0
    mask_ratio: float = 0.75
    weight_inter: float = 1.0
    weight_intra: float = 1.0
    weight_mim: float = -1.0
    student_temperature: float = 0.1
    teacher_temperature: float = 0.01
    teacher_temperature_start: float = 0.008
    ema_start: float = 0.996
    alignment: str = "coordinates"
    patients: str = EVERYONE
    hidden: int = 0
    codes: int = 512


def entropy_share(p: Tensor) -> Tensor:
    """Entropy of distributions (..., K) as a share of log K, the entropy of the uniform one: (...), in [0, 1]."""
    return -torch.xlogy(p, p).sum(-1) / math.log(p.shape[-1])


class _Heads(nn.Module):
    """Student and teacher sides of what stands beside the network."""

    def __init__(self, encoder_channels: int, decoder_channels: int, hidden: int, codes: int) -> None:
        super().__init__()
        head = DistillationHead(encoder_channels, decoder_channels, hidden, codes=codes)
        self.student = nn.ModuleDict({"head": head, "casa": CrossAttentionAlignment(codes, hidden=4 * codes)})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)


class Alice(Method):
    """Online network on masked crops, EMA teacher on the intact ones, two volumes a pair.

    * inter-volume: the student's class token of one volume predicts the teacher's of the other;
    * intra-volume: tokens of student and teacher, both re-expressed by CASA at the student's encoder tokens, agree;
    * masked reconstruction: the student's decoder restores hidden voxels.

    Tokens are the encoder stage nearest stride 16 (:func:`token_stage`) and the decoder stage one finer; mask cells
    have the size of a token. Padded voxels count in no term.

    Args:
        alignment: where the partner of a crop is centred.
    """

    name = "alice"
    citation = (
        "Jiang et al., Anatomical Invariance Modeling and Semantic Alignment for Self-supervised Learning in 3D "
        "Medical Image Analysis, ICCV 2023, arXiv 2302.05615"
    )
    options_class = AliceOptions
    minimum_volumes = 2

    def __init__(self, setup: Setup, options: AliceOptions, alignment: Alignment | None = None) -> None:
        super().__init__(setup, options)
        if options.alignment not in (*ALIGNMENTS, "sam"):
            known = ", ".join((*ALIGNMENTS, "sam"))
            raise OptionError(f"--pairs {options.alignment}: expected one of {known}.")
        self.alignment = alignment or ALIGNMENTS.get(options.alignment, BodyCoordinates)()
        self.pairs = options.pairs or max(1, setup.batch_size // 2)
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)
        encoder = self.network.encoder
        self.decoder_cell = cumulative_strides(encoder.strides)[self.stage - 1]
        self.decoder_stage = len(encoder.strides) - 1 - self.stage
        channels = encoder.output_channels
        hidden = options.hidden or min(2048, 8 * channels[self.stage])
        self.heads = _Heads(channels[self.stage], channels[self.stage - 1], hidden, options.codes)
        self.heads.inter = SelfDistillationLoss(options.codes, options.student_temperature)
        self.heads.intra = SelfDistillationLoss(options.codes, options.student_temperature)
        self.reconstruction_loss = MaskedReconstructionLoss()
        mim = options.weight_mim if options.weight_mim >= 0 else (10.0 if setup.unit_range else 1.0)
        self.loss_weights = {"inter": options.weight_inter, "intra": options.weight_intra, "mim": mim}

    def train(self, mode: bool = True) -> "Alice":
        """The teacher's side stays in evaluation mode (no dropout in the target)."""
        super().train(mode)
        self.teacher.eval()
        self.heads.teacher.eval()
        return self

    def prepare(self, manifest: Manifest, folder: Path, group: Ranks) -> None:
        """Read the mined pairs of ``pretrain sam`` where they are asked for; the first rank mines what is not there."""
        if self.options.alignment != "sam":
            return
        embedding = folder.with_name(folder.name.replace(self.name, "sam", 1))
        options = MiningOptions(patients=self.options.patients)
        found = (embedding, embedding / FINAL, manifest, options, group.device.type)
        if group.first:
            self.alignment = mined_pairs(*found)
        group.barrier()
        if not group.first:
            self.alignment = mined_pairs(*found)

    def source(self, steps: int, seed: int, rank: int) -> Dataset:
        """See :class:`Method`."""
        return PairedCrops(self.setup.cases, self.setup.patch_size, self.alignment, self.pairs, seed, steps, rank)

    @torch.no_grad()
    def make_views(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """One geometry a crop, independent intensities for student and teacher, and the student's block mask."""
        image, inside = turned(batch["image"], batch["valid"], self.setup.spacing, generator)
        cells = valid_cells(inside, self.cell)
        hidden = upsample_cells(sample_block_mask(cells, self.options.mask_ratio, generator), self.cell)
        student, teacher = (apply_intensity(image, sample_intensity(image.shape, generator)) * inside for _ in range(2))
        return {
            "student": student * ~hidden,
            "teacher": teacher,
            "image": image,
            "hidden": hidden & inside,
            "encoder_valid": cells.flatten(1),
            "decoder_valid": valid_cells(inside, self.decoder_cell).flatten(1),
        }

    def _tokens(self, network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        skips = network.encoder(image)
        features = decode(network.decoder, skips)
        return to_tokens(skips[self.stage]), to_tokens(features[self.decoder_stage]), features[-1]

    @staticmethod
    def _pool(tokens: Tensor, valid: Tensor) -> Tensor:
        weight = valid.to(tokens.dtype).unsqueeze(-1)
        return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)

    def forward(self, views: dict[str, Tensor], progress: float) -> StepOutput:
        """See the class; :class:`Method` has the contract."""
        encoder_valid, decoder_valid = views["encoder_valid"], views["decoder_valid"]
        student, teacher = self.heads.student, self.heads.teacher
        tokens, decoded, last = self._tokens(self.network, views["student"])
        reconstruction = self.network.decoder.seg_layers[-1](last)
        student_class = student["head"].class_token(self._pool(tokens, encoder_valid))
        query = student["head"].encoder_tokens(tokens)
        s = student["casa"](query, student["head"].decoder_tokens(decoded), decoder_valid)
        with torch.no_grad():
            tokens_t, decoded_t, _ = self._tokens(self.teacher, views["teacher"])
            teacher_class = teacher["head"].class_token(self._pool(tokens_t, encoder_valid))
            t = teacher["casa"](query.detach(), teacher["head"].decoder_tokens(decoded_t), decoder_valid)
        temperature = self._teacher_temperature(progress)
        partner = teacher_class.roll(len(teacher_class) // 2, 0)
        losses = {
            "inter": self.heads.inter(student_class, partner, temperature),
            "intra": self.heads.intra(s, t, temperature, encoder_valid),
            "mim": self.reconstruction_loss(reconstruction, views["image"], views["hidden"]),
        }
        valid_targets = t[encoder_valid]
        state = {"class_mean": teacher_class.mean(0), "token_mean": valid_targets.mean(0)}
        diagnostics = self._diagnostics(valid_targets, temperature)
        diagnostics["class_target_entropy"] = entropy_share(self.heads.inter.target(teacher_class, temperature)).mean()
        return StepOutput(losses, diagnostics, state)

    def _teacher_temperature(self, progress: float) -> float:
        start, end = self.options.teacher_temperature_start, self.options.teacher_temperature
        return start + (end - start) * min(1, progress / 0.03)

    @torch.no_grad()
    def _diagnostics(self, targets: Tensor, temperature: float) -> dict[str, Tensor]:
        """Collapse measurements over valid target tokens (N, K).

        ``target_entropy``: mean entropy of a token's target; ``mean_target_entropy``: entropy of the mean target, both
        as shares of log K; ``effective_rank``: participation ratio (sum of eigenvalues)^2 / sum of squared
        eigenvalues of the tokens' covariance.
        """
        p = self.heads.intra.target(targets, temperature)
        centred = (targets - targets.mean(0)).float()
        # the Gram matrix of the smaller side has the same non-zero eigenvalues as the covariance
        gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
        return {
            "target_entropy": entropy_share(p).mean(),
            "mean_target_entropy": entropy_share(p.mean(0)),
            "effective_rank": gram.diagonal().sum() ** 2 / gram.square().sum().clamp(min=1e-12),
        }

    @torch.no_grad()
    def after_step(self, output: StepOutput, progress: float) -> None:
        """Centres, then the teacher: m times itself plus (1 - m) times the student, m to 1 along a cosine."""
        self.heads.inter.update_center(output.state["class_mean"])
        self.heads.intra.update_center(output.state["token_mean"])
        momentum = 1 - (1 - self.options.ema_start) * (math.cos(math.pi * progress) + 1) / 2
        update = get_ema_multi_avg_fn(momentum)
        for old, new in ((self.teacher, self.network), (self.heads.teacher, self.heads.student)):
            update(list(old.parameters()), list(new.parameters()), None)

    def warnings(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Signs of collapse in an epoch's means."""
        found = []
        if diagnostics["mean_target_entropy"] < 0.05:
            found.append(
                f"collapse: nearly all targets are one code (mean-target entropy "
                f"{diagnostics['mean_target_entropy']:.3f} of log K)"
            )
        if diagnostics["target_entropy"] > 0.95:
            found.append(
                f"collapse: targets are nearly uniform (target entropy {diagnostics['target_entropy']:.3f} of log K)"
            )
        if diagnostics["class_target_entropy"] > 0.95:
            share = diagnostics["class_target_entropy"]
            found.append(
                f"class targets are nearly uniform ({share:.3f} of log K): the inter-volume term teaches nothing"
            )
        if diagnostics["effective_rank"] < 2:
            found.append(f"collapse: target tokens span {diagnostics['effective_rank']:.1f} directions")
        return found
