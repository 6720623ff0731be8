"""P1: how long an all-reduce takes on one host."""
