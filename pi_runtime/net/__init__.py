"""What crosses the network: frames, message schemas and order, metered channels, TLS, certificates, shaped links."""
