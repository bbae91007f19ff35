"""From rating logs to measured and trained profilers: prepare, evaluate, train."""
