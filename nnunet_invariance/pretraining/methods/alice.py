"""Alice on any encoder that yields skips (arXiv 2302.05615): self-distillation, CASA and masked reconstruction."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nnunet_invariance.augmentation.device_views import apply_intensity, augment_affine, sample_intensity
from nnunet_invariance.augmentation.masking import sample_block_mask, sample_tube_mask, upsample_cells, valid_cells
from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.errors import OptionError
from nnunet_invariance.losses.masked_reconstruction import MaskedReconstructionLoss
from nnunet_invariance.losses.self_distillation import SelfDistillationLoss
from nnunet_invariance.networks.heads.casa import CrossAttentionAlignment
from nnunet_invariance.networks.heads.distillation_head import DistillationHead
from nnunet_invariance.networks.planned import cumulative_strides, decode, to_tokens
from nnunet_invariance.networks.sparse import MaskTokens, SparseEncoding
from nnunet_invariance.nnunet.cases import Manifest
from nnunet_invariance.pretraining.data.alignment import Alignment, BodyCoordinates, RandomPlaces, SameVolume
from nnunet_invariance.pretraining.data.crops import PairedCrops
from nnunet_invariance.pretraining.data.mining import MiningOptions, mined_pairs
from nnunet_invariance.pretraining.data.patients import patients_of, require_two
from nnunet_invariance.pretraining.engine.method import (
    Method,
    Setup,
    StepOutput,
    Views,
    cosine_momentum,
    frozen_copy,
    update_ema,
)
from nnunet_invariance.pretraining.methods.alice_options import AliceOptions
from nnunet_invariance.weights.locate import FINAL

#: Beside "sam", the pairs that are mined with an anatomical embedding.
ALIGNMENTS: dict[str, Callable[[str], Alignment]] = {
    "coordinates": BodyCoordinates,
    "same-volume": SameVolume,
    "random": RandomPlaces,
}


def entropy_share(p: Tensor) -> Tensor:
    """Entropy of distributions (..., K) as a share of log K, the entropy of the uniform one: (...), in [0, 1]."""
    return -torch.xlogy(p, p).sum(-1) / math.log(p.shape[-1])


class _Heads(nn.Module):
    """Student and teacher sides of what stands beside the network."""

    def __init__(self, encoder_channels: int, decoder_channels: int, hidden: int, options: AliceOptions) -> None:
        super().__init__()
        codes, temperature = options.num_prototypes, options.student_temperature
        head = DistillationHead(encoder_channels, decoder_channels, hidden, num_prototypes=codes)
        casa = CrossAttentionAlignment(codes, hidden=4 * codes, form=options.casa)
        self.student = nn.ModuleDict({"head": head, "casa": casa})
        self.teacher = frozen_copy(self.student)
        self.inter = SelfDistillationLoss(codes, temperature, collapse_guard=options.collapse_guard)
        self.intra = SelfDistillationLoss(codes, temperature, collapse_guard=options.collapse_guard)


class Alice(Method):
    """Online network on masked crops, EMA teacher on the intact ones, two volumes a pair.

    * inter-volume: the student's class token of one volume predicts the teacher's of the other;
    * intra-volume: tokens of student and teacher, both re-expressed by CASA at the student's encoder tokens, agree;
    * masked reconstruction: the student's decoder restores hidden voxels.

    Tokens are the encoder stage nearest stride 16 (:func:`token_stage`) and the decoder stage one finer; mask cells
    have the size of a token. Padded voxels count in no term. With a sparse encoding the student has no token where it
    sees nothing: class token, queries and the token term are those of the visible cells.

    Args:
        alignment: where the partner of a crop is centred.
    """

    name = "alice"
    citation = (
        "Jiang et al., Anatomical Invariance Modeling and Semantic Alignment for Self-supervised Learning in 3D "
        "Medical Image Analysis, ICCV 2023, arXiv 2302.05615"
    )
    options_class = AliceOptions
    options: AliceOptions
    least_volumes = 2

    def __init__(self, setup: Setup, options: AliceOptions, alignment: Alignment | None = None) -> None:
        super().__init__(setup, options)
        patients = patients_of(setup.cases, options.patients)
        if patients and options.alignment != "same-volume":
            require_two(patients)
        if alignment is None and options.alignment != "sam":
            alignment = ALIGNMENTS[options.alignment](options.patients)
        self.alignment = alignment  # mined pairs are read in :meth:`prepare`
        self.batch_size = options.batch_size or max(1, setup.batch_size // 2)
        self.teacher = frozen_copy(self.network)
        encoder = self.network.encoder
        self.decoder_cell = cumulative_strides(encoder.strides)[self.stage - 1]
        self.decoder_stage = len(encoder.strides) - 1 - self.stage
        channels = encoder.output_channels
        hidden = options.hidden or min(2048, 8 * channels[self.stage])
        self.heads = _Heads(channels[self.stage], channels[self.stage - 1], hidden, options)
        self.sparse: SparseEncoding | None = None
        if options.encoding == "sparse":
            self.sparse = SparseEncoding(encoder)
            self.heads.mask_tokens = MaskTokens(channels)
        self.reconstruction_loss = MaskedReconstructionLoss()
        automatic = 10.0 if setup.unit_range else 1.0
        mim = automatic if options.weight_mim is None else options.weight_mim
        self.loss_weights = {"inter": options.weight_inter, "intra": options.weight_intra, "mim": mim}

    def describe(self) -> str:
        """See :class:`Method`; and the settings that are not the default ones."""
        options = ((f.name, f.default, getattr(self.options, f.name)) for f in dataclasses.fields(self.options))
        changed = " ".join(f"{name}={value}" for name, default, value in options if value != default)
        return f"{super().describe()}, {changed or 'default settings'}"

    def train(self, mode: bool = True) -> "Alice":
        """The teacher's side stays in evaluation mode (no dropout in the target)."""
        super().train(mode)
        self.heads.teacher.eval()
        return self

    def prepare(self, manifest: Manifest, folder: Path, group: DistributedContext, resume: bool) -> None:
        """Read the mined pairs of ``pretrain sam`` where they are asked for; the first rank mines what is not there."""
        if self.options.alignment != "sam" or self.alignment is not None:
            return
        embedding = folder.with_name(folder.name.replace(self.name, "sam", 1))
        options = MiningOptions(patients=self.options.patients)
        found = (embedding, embedding / FINAL, manifest, options, group.device.type)
        if group.is_main:
            self.alignment = mined_pairs(*found)
        group.barrier()
        if not group.is_main:
            self.alignment = mined_pairs(*found)
        self.prepared = {"pairs_sha256": self.alignment.sha256}

    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """See :class:`Method`.

        Raises:
            OptionError: pairs of ``pretrain sam`` are asked for and were not read.
        """
        if self.alignment is None:
            raise OptionError("alignment=sam: no pairs were read. Call prepare first, or give Alice mined_pairs(...).")
        return PairedCrops(self.setup.cases, self.setup.patch_size, self.alignment, self.batch_size, seed, steps, rank)

    @torch.no_grad()
    def make_views(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Views:
        """One geometry a crop, independent intensities for student and teacher, and the student's mask."""
        image, inside = augment_affine(batch["image"], batch["valid"], self.setup.spacing, generator)
        cells = valid_cells(inside, self.cell)
        hidden_cells = self._mask(cells, generator)
        hidden = upsample_cells(hidden_cells, self.cell)
        student, teacher = (apply_intensity(image, sample_intensity(image.shape, generator)) * inside for _ in range(2))
        return {
            "student": student * ~hidden,
            "teacher": teacher,
            "image": image,
            "hidden": hidden & inside,
            "inside": inside,
            "visible": cells & ~hidden_cells,
            "sure": (batch["score"] >= self.options.score_threshold).repeat(2),
            "encoder_valid": cells.flatten(1),
            "decoder_valid": valid_cells(inside, self.decoder_cell).flatten(1),
        }

    def _mask(self, cells: Tensor, generator: torch.Generator) -> Tensor:
        if self.options.mask_mode == "block3d":
            return sample_block_mask(cells, self.options.mask_ratio, generator)
        # z, which the release's encoder reads last; the first axis of other encoders, whose axes nothing names
        axis = getattr(self.network.encoder, "axes", (0,))[-1]
        return sample_tube_mask(cells, self.options.mask_ratio, generator, axis)

    def _student_skips(self, views: dict[str, Tensor]) -> list[Tensor]:
        if self.sparse is None:
            return self.network.encoder(views["student"])
        with self.sparse.restricted_to(views["visible"]):
            skips = self.network.encoder(views["student"])
        return self.heads.mask_tokens(skips, views["visible"])

    @staticmethod
    def _pool(tokens: Tensor, valid: Tensor) -> Tensor:
        weight = valid.to(tokens.dtype).unsqueeze(-1)
        return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)

    def forward(self, views: Views, progress: float) -> StepOutput:
        """See the class; :class:`Method` has the contract."""
        encoder_valid, decoder_valid = views["encoder_valid"], views["decoder_valid"]
        asked = encoder_valid if self.sparse is None else views["visible"].flatten(1)
        head, casa = self.heads.student["head"], self.heads.student["casa"]
        skips = self._student_skips(views)
        features = decode(self.network.decoder, skips)
        reconstruction = self.network.decoder.seg_layers[-1](features[-1])
        tokens = to_tokens(skips[self.stage])
        student_class = head.class_token(self._pool(tokens, asked))
        query = head.encoder_tokens(tokens)
        s = casa(query, head.decoder_tokens(to_tokens(features[self.decoder_stage])), decoder_valid)
        teacher_class, t = self._targets(views["teacher"], query.detach(), encoder_valid, decoder_valid)
        temperature = self._teacher_temperature(progress)
        partner = teacher_class.roll(len(teacher_class) // 2, 0)
        counted = views["hidden"] if self.options.mim_voxels == "masked" else views["inside"]
        losses = {
            "inter": self.heads.inter(student_class, partner, temperature, views["sure"]),
            "intra": self.heads.intra(s, t, temperature, asked),
            "mim": self.reconstruction_loss(reconstruction, views["image"], counted),
        }
        # a mean over samples of means within a sample, so that the mean over ranks is that of the joined batch
        state = {"class_mean": teacher_class.mean(0), "token_mean": self._pool(t, asked).mean(0)}
        diagnostics = self._diagnostics(t[asked], temperature)
        diagnostics["class_target_entropy"] = entropy_share(self.heads.inter.target(teacher_class, temperature)).mean()
        diagnostics["sure_pairs"] = views["sure"].float().mean()
        return StepOutput(losses, diagnostics, state)

    @torch.no_grad()
    def _targets(
        self, image: Tensor, query: Tensor, encoder_valid: Tensor, decoder_valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The teacher's class token (B, K), and its tokens at the places of the query (B, N, K)."""
        head, casa = self.heads.teacher["head"], self.heads.teacher["casa"]
        skips = self.teacher.encoder(image)
        tokens = to_tokens(skips[self.stage])
        class_token = head.class_token(self._pool(tokens, encoder_valid))
        if self.options.target_kv == "encoder":
            return class_token, casa(query, head.encoder_tokens(tokens), encoder_valid)
        decoded = to_tokens(decode(self.teacher.decoder, skips)[self.decoder_stage])
        return class_token, casa(query, head.decoder_tokens(decoded), decoder_valid)

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
        """Centres, then the teacher: m times itself plus (1 - m) times the student, m to 1 along a cosine.

        Buffers of the network (statistics of batch norms, averages themselves) and a shared CASA are the student's at
        once; the copy of CASA differs in that it has no dropout.
        """
        self.heads.inter.update_center(output.state["class_mean"])
        self.heads.intra.update_center(output.state["token_mean"])
        momentum = cosine_momentum(self.options.ema_start, progress)
        update_ema(self.teacher, self.network, momentum)
        update_ema(self.heads.teacher, self.heads.student, momentum)
        if self.options.casa_target == "shared":
            self.heads.teacher["casa"].load_state_dict(self.heads.student["casa"].state_dict())

    def warnings(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Signs of collapse in an epoch's means."""
        found = []
        if diagnostics["mean_target_entropy"] < 0.05:
            found.append(
                f"collapse: nearly all targets are one prototype (mean-target entropy "
                f"{diagnostics['mean_target_entropy']:.3f} of log K); try --set collapse_guard=sinkhorn"
            )
        if diagnostics["target_entropy"] > 0.95:
            found.append(
                f"collapse: targets are nearly uniform (target entropy {diagnostics['target_entropy']:.3f} of log K); "
                "lower teacher_temperature"
            )
        if diagnostics["class_target_entropy"] > 0.95:
            share = diagnostics["class_target_entropy"]
            found.append(
                f"class targets are nearly uniform ({share:.3f} of log K): the inter-volume loss has no effect; use "
                "images that differ more (--images), or switch it off (--set weight_inter=0)"
            )
        if diagnostics["effective_rank"] < 2:
            rank = diagnostics["effective_rank"]
            found.append(f"collapse: target tokens span {rank:.1f} directions; try --set collapse_guard=sinkhorn")
        return found
