"""The transformer, and the masked model made of it."""
