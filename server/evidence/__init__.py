"""Measuring a version, and the verdict on it."""
