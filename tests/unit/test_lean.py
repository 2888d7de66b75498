"""A program of ours does without what transformers would import beside; a library's user keeps it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
{before}
import shoal.blocks.span, bitsandbytes, hivemind
import transformers.models.gemma3.modeling_gemma3
found = [name for name in ("accelerate", "sklearn", "pandas", "torchvision") if sys.modules.get(name)]
print(" ".join(found) or "none", "pandas" in sys.modules)
"""


def run(before: str) -> str:
    code = CODE.format(before=before)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_layers_and_quantization_load_without_the_packages_that_are_left_out() -> None:
    assert run("from shoal.blocks.lean import leave_out; leave_out()") == "none True"


def test_nothing_is_hidden_from_who_imports_the_library() -> None:
    code = "import shoal.blocks.span, shoal.client.swarm, sys; print(None in sys.modules.values())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_command_line_leaves_them_out() -> None:
    code = (
        "import sys; from shoal.client.cli.main import run;"
        "run(lambda: lambda argv: print('pandas' in sys.modules and sys.modules['pandas'] is None) or 0, [])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("True"), done.stderr


def test_a_client_imports_no_modeling_code_and_of_hivemind_only_what_it_uses() -> None:
    code = (
        "import sys; from shoal.blocks.lean import leave_out; leave_out();"
        "from shoal.client.cli.completion import complete; from shoal.client.local import load_model;"
        "import shoal.dht.foreign; load_model('demo', None);"
        "print({name for name in ('transformers.activations', 'torch._dynamo', 'hivemind.averaging', 'rich') if name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr
