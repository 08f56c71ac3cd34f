"""Two-party inference by SPU, a peer: the graph as a jax function, run by SPU's own protocols."""
