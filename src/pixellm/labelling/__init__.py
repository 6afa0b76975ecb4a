"""Pseudo-labels: masks that a model draws for photos without annotations, for people to check."""
