"""The classification losses fused: one pass over the logits that adds up the loss and leaves the gradient."""
