"""Training data: episodes from their sources, windows cut out of them, statistics, checks,
inspection, augmentation."""
