"""Promises of every kind of component, a file for each."""
