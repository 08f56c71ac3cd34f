"""The `preset` backend: two-party inference whose online cost is the ReLU count (``pi_runtime/PROTOCOL.md``)."""
