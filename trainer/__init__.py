"""Everything with parameters or gradients: networks, sampler, methods, losses, the training loop."""
