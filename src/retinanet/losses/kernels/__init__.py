"""Fused kernels of the classification losses: one pass over the logits computes the summed loss and its gradient."""
