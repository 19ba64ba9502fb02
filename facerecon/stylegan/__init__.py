"""Pictures from codes: StyleGAN2 and its training, texture decoders, the open face generator."""

from facerecon.stylegan.load import load_decoder, load_face_generator

__all__ = ["load_decoder", "load_face_generator"]
