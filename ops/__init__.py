"""What surrounds the product: set-up, sandbox, demo, proofs. Not installed with it."""
