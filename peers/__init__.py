"""The roles that a person runs: one process each, wiring and lifetime, no domain logic."""
