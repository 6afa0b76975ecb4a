"""Commands keep the notes of libraries to developers away from the user, and nothing else."""

from __future__ import annotations

import warnings

from pixellm.cli.console import import_quietly


def test_only_the_libraries_notes_on_their_future_are_hidden() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        import_quietly("pixellm.processing.processor")
        for module in ("transformers.modeling_utils", "torchao", "torch.nn", "transformersque"):
            for category in (FutureWarning, DeprecationWarning, UserWarning):
                words = f"{module}: {category.__name__}"
                warnings.warn_explicit(words, category, "file.py", 1, module=module)
    shown = [str(one.message) for one in seen]
    assert shown == [
        "transformers.modeling_utils: UserWarning",
        "torchao: UserWarning",
        "torch.nn: UserWarning",
        "transformersque: FutureWarning",
        "transformersque: DeprecationWarning",
        "transformersque: UserWarning",
    ]
