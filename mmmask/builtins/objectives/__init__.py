"""Objectives, a folder each, with their evaluators."""
