"""Arithmetic of shares: rings, exact convolution, pseudo-random generator, the ReLU gate; and their kernels."""
