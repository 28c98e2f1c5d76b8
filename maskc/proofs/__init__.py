"""Claims: proofs over all calls, and witnesses where there is none."""
