"""The `pi-pipeline` command."""
