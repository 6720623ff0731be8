"""Training: the data's order, the model, the inner steps of a peer and the outer step of all."""
