"""The operators' library and torch use one C++ runtime, even where the compiler would put a second into the library."""

import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.kernels
SOURCE = r"""
#include <cstring>
#include <sstream>
extern "C" void shape(char* room, long size) {
  std::ostringstream text;
  text << "not shape [" << 5L << ", " << 2560L << "]";
  std::strncpy(room, text.str().c_str(), size - 1);
}
"""
# In a process of its own: with two runtimes it may die.
PROGRAM = """
import ctypes, subprocess, sys
import torch
from loadgen.microbench.extension import _cpp_runtime
compiler, source, library = sys.argv[1:]
command = [compiler, "-shared", "-fPIC", source, "-o", library, *_cpp_runtime(), "-static-libstdc++"]
subprocess.run(command, check=True)
room = ctypes.create_string_buffer(99)
ctypes.CDLL(library).shape(room, 99)
print(room.value.decode())
"""


def test_a_message_with_a_number_is_whole(tmp_path):
    compiler = shutil.which("c++") or pytest.skip("needs a C++ compiler")
    source = tmp_path / "shape.cpp"
    source.write_text(SOURCE)
    command = [sys.executable, "-c", PROGRAM, compiler, str(source), str(tmp_path / "shape.so")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "not shape [5, 2560]"), done.stderr
