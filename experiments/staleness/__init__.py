"""What steps cost that are taken before the mean of the last round is known."""
