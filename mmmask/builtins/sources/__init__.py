"""Sources of files, whatever is in them."""
