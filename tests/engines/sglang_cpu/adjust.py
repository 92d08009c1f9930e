"""Lets SGLang 0.5.23 run without a GPU, from packages of PyPI: run with the Python that SGLang is installed for.

SGLang's front end, scheduler, prefix cache and models need no GPU, but they import packages that PyPI has for
CUDA only. None of what is replaced here runs on a CPU with `--attention-backend torch_native`:

- torchvision registers the shapes of operators that only its compiled half defines, and that half does not load
  beside a torch for the CPU: "operator torchvision::nms does not exist". SGLang uses its image transforms alone.
- sgl_kernel (of the package sglang-kernel) is linked against CUDA. SGLang imports functions from it by name, and
  calls them on a CPU only with AMX and in speculative decoding.
- triton would work, but is 1 GB, and nothing here is compiled. SGLang only decorates functions with it. (SGLang
  has a stand-in of its own, for macOS.)
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Adjusts the site-packages of the Python that runs this."""
    import torch

    if torch.version.cuda is not None:
        sys.exit(f"{sys.executable}: its torch {torch.__version__} is for CUDA; install a torch built for the CPU")
    packages = Path(sysconfig.get_path("purelib"))
    (packages / "torchvision" / "_meta_registrations.py").write_text("")
    for name in ("sgl_kernel", "triton"):
        (packages / name).mkdir(exist_ok=True)
        shutil.copy(HERE / f"{name}_stand_in.py", packages / name / "__init__.py")


if __name__ == "__main__":
    main()
