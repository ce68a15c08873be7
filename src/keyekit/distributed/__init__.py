"""What runs over several processes: checkpoints of their shards."""
