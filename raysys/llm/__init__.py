"""Language models: backbones by one spec string, text encoders, the vector table."""
