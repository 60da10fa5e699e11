"""Figures on held-out samples."""
