"""Held-out figures, and pictures of reconstructions."""
