"""Make transformers' Auto classes know PixelLM: importing this module is all it takes.

``AutoConfig``, ``AutoModel``, ``AutoModelForImageTextToText``, ``AutoProcessor`` and
``AutoImageProcessor`` load PixelLM's folders afterwards, as those of any other model.
"""

from pixellm.model import modeling as modeling
from pixellm.processing import processor as processor
