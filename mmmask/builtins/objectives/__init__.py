"""What is learned from a stream."""
