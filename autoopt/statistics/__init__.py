"""What gradients say about a layer: pure formulas, curvature, and the streaming warm-up collector."""
