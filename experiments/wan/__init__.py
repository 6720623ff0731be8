"""P2 and P3: what an all-reduce sends between sites, and how well it uses their links."""
