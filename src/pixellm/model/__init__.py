"""The network: vision tower, codebook, pixel decoder, losses, generation. No files, no text."""
