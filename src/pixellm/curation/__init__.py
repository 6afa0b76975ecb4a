"""The MUSE generator: from annotated photos to questions whose answers carry instance masks.

One road, *select -> propose -> verify -> repair once -> deduplicate -> split -> write*, over one
SQLite ledger (Ren et al., "PixelLM", CVPR 2024, section 4). Nothing here knows torch, a model's
weights or a terminal; a vision LLM is only a :class:`~pixellm.llm.client.Client`.
"""
