"""Meta-training: one visible loop, and the run directory it writes."""
