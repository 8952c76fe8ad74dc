"""TorchRec: sharders, plans and shards for the two-phase update."""
