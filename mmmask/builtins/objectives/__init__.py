"""What is learned from a stream: an objective each, with what measures it."""
