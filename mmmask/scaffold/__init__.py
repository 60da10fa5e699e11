"""`mmmask new`: the package of a new plugin."""
