"""Registration of two volumes of any contrast: descriptors or learned features, ConvexAdam, a field in millimetres."""
