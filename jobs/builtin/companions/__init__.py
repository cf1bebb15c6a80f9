"""Companions of the built-in model: ControlNets, LoRA, embedding, depth, inpainting, decoder, upscaler."""
