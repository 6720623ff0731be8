"""How many bytes and how much time full membership by gossip costs, simulated and real."""
