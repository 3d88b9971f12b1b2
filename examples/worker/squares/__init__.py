"""A trainer that a platform runs: see trainer.py."""
