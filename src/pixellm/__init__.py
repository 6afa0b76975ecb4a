"""pixellm: answers about pictures in which every object named carries its mask (PixelLM)."""
