"""PixPNet: prototypical parts that are grounded in pixels (Carmichael et al., arXiv 2309.14531)."""
