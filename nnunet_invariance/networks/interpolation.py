"""Modes of linear interpolation."""

#: Mode of ``torch.nn.functional.interpolate`` by the number of spatial dimensions.
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
