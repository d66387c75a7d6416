"""Datasets in canonical columns, sampling, decoding and collators."""
