"""Networks that plans can name, the heads that are trained with them, and access to their feature maps.

>>> from nnunet_invariance.networks import cumulative_strides
>>> cumulative_strides([[1, 1, 1], [1, 2, 2], [2, 2, 2]])
[(1, 1, 1), (1, 2, 2), (2, 4, 4)]
"""

from typing import TYPE_CHECKING

from nnunet_invariance.common.lazy import lazy_exports

if TYPE_CHECKING:
    from nnunet_invariance.networks.architectures.anatomix_unet import AnatomixUNet as AnatomixUNet
    from nnunet_invariance.networks.architectures.bottleneck_decoder import BottleneckDecoder as BottleneckDecoder
    from nnunet_invariance.networks.architectures.fusion import GatedFusion as GatedFusion
    from nnunet_invariance.networks.architectures.nnformer import NNFormerUNet as NNFormerUNet
    from nnunet_invariance.networks.architectures.primus import Primus as Primus
    from nnunet_invariance.networks.architectures.prior import PriorAttention as PriorAttention
    from nnunet_invariance.networks.architectures.puir import PUIRNet as PUIRNet
    from nnunet_invariance.networks.architectures.puir_swin import PUIRSwinUNETR as PUIRSwinUNETR
    from nnunet_invariance.networks.architectures.resnet3d import ResNet3d as ResNet3d
    from nnunet_invariance.networks.architectures.skip_decoder import SkipDecoder as SkipDecoder
    from nnunet_invariance.networks.architectures.swin_unetr import SwinUNETR as SwinUNETR
    from nnunet_invariance.networks.feature_hook import EncoderFeatureHook as EncoderFeatureHook
    from nnunet_invariance.networks.feature_levels import feature_maps as feature_maps
    from nnunet_invariance.networks.frozen_features import FrozenFeatureEncoder as FrozenFeatureEncoder
    from nnunet_invariance.networks.heads.anatomical_embedding import EmbeddingHead as EmbeddingHead
    from nnunet_invariance.networks.heads.casa import CrossAttentionAlignment as CrossAttentionAlignment
    from nnunet_invariance.networks.heads.distillation_head import DistillationHead as DistillationHead
    from nnunet_invariance.networks.heads.projection import ContrastHead as ContrastHead
    from nnunet_invariance.networks.heads.projection import ProjectionHead as ProjectionHead
    from nnunet_invariance.networks.heads.projection import gather_positions as gather_positions
    from nnunet_invariance.networks.heads.projection import sample_positions as sample_positions
    from nnunet_invariance.networks.hypercolumns import HypercolumnMaps as HypercolumnMaps
    from nnunet_invariance.networks.hypercolumns import compute_hypercolumns as compute_hypercolumns
    from nnunet_invariance.networks.hypercolumns import sample_hypercolumns as sample_hypercolumns
    from nnunet_invariance.networks.matching import match_points as match_points
    from nnunet_invariance.networks.planned import Architecture as Architecture
    from nnunet_invariance.networks.planned import cumulative_strides as cumulative_strides
    from nnunet_invariance.networks.planned import decode as decode
    from nnunet_invariance.networks.presence import present_channels as present_channels
    from nnunet_invariance.networks.sparse import MaskTokens as MaskTokens
    from nnunet_invariance.networks.sparse import SparseEncoding as SparseEncoding
    from nnunet_invariance.networks.summed_head import SummedHeadUNet as SummedHeadUNet

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "architectures.anatomix_unet": ("AnatomixUNet",),
        "architectures.bottleneck_decoder": ("BottleneckDecoder",),
        "architectures.fusion": ("GatedFusion",),
        "architectures.nnformer": ("NNFormerUNet",),
        "architectures.primus": ("Primus",),
        "architectures.prior": ("PriorAttention",),
        "architectures.puir": ("PUIRNet",),
        "architectures.puir_swin": ("PUIRSwinUNETR",),
        "architectures.resnet3d": ("ResNet3d",),
        "architectures.skip_decoder": ("SkipDecoder",),
        "architectures.swin_unetr": ("SwinUNETR",),
        "feature_hook": ("EncoderFeatureHook",),
        "feature_levels": ("feature_maps",),
        "frozen_features": ("FrozenFeatureEncoder",),
        "heads.anatomical_embedding": ("EmbeddingHead",),
        "heads.casa": ("CrossAttentionAlignment",),
        "heads.distillation_head": ("DistillationHead",),
        "heads.projection": ("ContrastHead", "ProjectionHead", "gather_positions", "sample_positions"),
        "hypercolumns": ("HypercolumnMaps", "compute_hypercolumns", "sample_hypercolumns"),
        "matching": ("match_points",),
        "planned": ("Architecture", "cumulative_strides", "decode"),
        "presence": ("present_channels",),
        "sparse": ("MaskTokens", "SparseEncoding"),
        "summed_head": ("SummedHeadUNet",),
    },
)
