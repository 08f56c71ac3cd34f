"""Measures exported networks on every backend and turns the figures into a report."""
