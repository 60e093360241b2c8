"""How networks see: encoders from scratch, heads on frozen backbones, one of them for each camera."""
