"""Probing: how well classes can be told from frozen features."""
