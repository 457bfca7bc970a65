"""Features as colours: principal components of standardised hypercolumns."""

import io

import matplotlib.image
import numpy as np
import torch
import torch.nn.functional as F

from nnunet_invariance.networks.hypercolumns import compute_hypercolumns
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.networks.stock import plain_conv_unet
from nnunet_invariance.probing.colours import draw_features, feature_colours, fit_colours
from nnunet_invariance.probing.samples import LabelledPatch


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return Architecture.from_plans(plain_conv_unet((4, 8)), 1, 1).build().eval()


def test_colours_are_the_principal_components_of_the_correlation_matrix():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(500, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    columns = columns * torch.tensor([1, 10, 0.1, 1, 5, 1]) + 3
    weight, bias = fit_colours(columns, [6])
    colours = (columns @ weight.T + bias).numpy()
    standardised = ((columns - columns.mean(0)) / columns.std(0)).numpy()
    directions = np.linalg.eigh(np.corrcoef(standardised.T))[1][:, ::-1][:, :3]
    for colour, component in zip(colours.T, (standardised @ directions).T, strict=True):
        np.testing.assert_allclose(abs(np.corrcoef(colour, component)[0, 1]), 1, rtol=1e-6)
    np.testing.assert_allclose(np.percentile(colours, [1, 99], axis=0), [[0] * 3, [1] * 3], atol=1e-6)


def test_every_voxel_has_the_colour_of_its_upsampled_hypercolumn():
    image = torch.randn(1, 1, 8, 8, 12, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(8, 8, 12, dtype=torch.bool)
    valid[0] = False
    found = feature_colours(network(), image, valid)
    assert (found[0] == 1).all()
    with torch.no_grad():
        maps = compute_hypercolumns(network(), image).maps
    whole = torch.cat([F.interpolate(m, size=image.shape[2:], mode="trilinear") for m in maps], 1)[0].flatten(1).T
    inside = ((found > 0) & (found < 1)).all(-1).flatten()
    assert inside.float().mean() > 0.8
    design, colours = torch.cat((whole, torch.ones(len(whole), 1)), 1)[inside], found.reshape(-1, 3)[inside]
    fitted = design @ torch.linalg.lstsq(design, colours, driver="gelsd").solution
    torch.testing.assert_close(fitted, colours, rtol=0, atol=1e-3)  # the colour is a linear map of the hypercolumn


def test_the_picture_shows_image_classes_and_networks():
    labels = torch.zeros(8, 8, 12, dtype=torch.long)
    labels[2:5, 2:6, 3:9] = 1
    patch = LabelledPatch("case", torch.randn(1, 1, 8, 8, 12), labels, True)
    content = draw_features(patch, {"before": network(), "after": network()}, {"background": 0, "o$^$": 1})
    picture = matplotlib.image.imread(io.BytesIO(content), format="png")
    assert picture.shape[1] > 3 * picture.shape[0] * 0.5
