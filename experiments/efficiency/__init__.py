"""What share of centralised training a network is worth, and how much faster it is than rivals."""
