"""From images and text to tensors, and from tensors back to masks and phrases."""
