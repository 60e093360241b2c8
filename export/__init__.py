"""From a training run to a bundle: graphs, checks against torch, precision, transfer."""
