"""Pictures from codes: StyleGAN2 and its training, texture decoders, the open face generator."""
