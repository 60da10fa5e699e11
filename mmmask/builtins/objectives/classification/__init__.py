"""Telling classes."""
