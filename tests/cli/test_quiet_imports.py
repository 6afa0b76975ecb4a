"""Commands keep the notes of libraries to developers away from the user, and nothing else."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings

import pytest

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


def test_garbage_is_looked_for_again_once_a_module_is_there_or_is_missing() -> None:
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError):
        import_quietly("pixellm.no_such_module")
    assert gc.isenabled()
    program = (
        "import gc; from pixellm.cli.console import import_quietly; "
        "import_quietly('pixellm.masks'); "
        "print(gc.isenabled(), gc.get_freeze_count() > 10_000)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.parametrize("arguments", [["missing.jpg", "Where?"], ["missing.jpg", ""]])
def test_a_wrong_image_is_told_with_neither_models_nor_tables_nor_the_network(
    arguments: list[str],
) -> None:
    program = (
        "import sys; from pixellm.cli.main import app\n"
        f"try: app({['segment', *arguments]!r})\n"
        "except SystemExit as left: print(left.code)\n"
        "print(sorted({'torch', 'transformers', 'rich.console', 'http.client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["2", "[]"], done.stderr
