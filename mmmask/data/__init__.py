"""From sources to batches: sampling, workers, replication, bad samples, mixing."""
