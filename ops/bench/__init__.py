"""The proofs behind the README's figures: `./ops/start bench NAME`."""
