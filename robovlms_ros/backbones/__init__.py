"""Vision-language backbones: adapters that give every VLM the same few attributes and splice rules."""
