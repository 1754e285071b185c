"""Builds the native engine: one shared library, each kernel source once for every instruction set.

The library has a plain C interface and is loaded with ctypes. It is optional: where it cannot be built, everything else
of fxq works and the target "native" says how to get it. So are two small libraries, for which PyTorch stands in.
Everything else about the package stands in pyproject.toml.
"""

from __future__ import annotations

import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ENGINE = "fxq.engine._native"
SOURCES = Path("fxq/engine/csrc")
DYNAMIC = Path("fxq/nn/kernels/csrc")
#: Compiled once.
COMMON = (
    "arena", "check_common", "check_conv", "check_load_store", "check_pointwise", "check_spatial", "check_transformer",
    "conv_pack", "cores", "halo", "isa", "kernels", "program", "run", "scaling_fit", "team", "threads", "validate",
)  # fmt: skip
#: Compiled for each instruction set of the row.
VECTOR = ("portable", "avx2", "avx512vnni")
KERNELS = {
    "conv": ("portable",),
    "conv_vector": ("avx2", "avxvnni", "avx512vnni"),
    "conv_narrow": ("avx2", "avxvnni", "avx512vnni"),
    "conv_winograd": ("avx2", "avxvnni", "avx512vnni"),
    "depthwise": ("avx2", "avxvnni", "avx512vnni"),
    "scaling": ("avx2", "avxvnni", "avx512vnni"),
    "conv_amx": ("amx",),
    "load_store": VECTOR,
    "unary": VECTOR,
    "binary": VECTOR,
    "gating": ("avx2", "avx512vnni"),
    "moves": VECTOR,
    "pool": VECTOR,
    "resize": VECTOR,
    "norms": VECTOR,
    "attention": VECTOR,
    "attention_codes": ("portable", "avx2", "avxvnni", "avx512vnni"),
}
FLAGS = ("-std=c++17", "-O3", "-g0", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-pthread",
         "-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized")  # fmt: skip
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512")
TILES = ("-mamx-tile", "-mamx-int8")
ISAS = {
    "portable": ("-DFXQ_PORTABLE",),
    "avx2": (*AVX2, "-DFXQ_AVX2"),
    "avxvnni": (*AVX2, "-mavxvnni", "-DFXQ_AVXVNNI"),
    "avx512vnni": (*AVX512, "-DFXQ_AVX512VNNI"),
    "amx": (*AVX512, *TILES, "-DFXQ_AVX512VNNI", "-DFXQ_AMX"),
}
X86 = platform.machine().lower() in ("x86_64", "amd64")


def units(tiles: bool) -> list[tuple[Path, tuple[str, ...], str]]:
    """Return (source, flags of its own, suffix of the object) of everything to compile."""
    common = ("-DFXQ_WITH_AMX",) if tiles else ()
    rows: list[tuple[Path, tuple[str, ...], str]] = [(SOURCES / f"{name}.cpp", common, "") for name in COMMON]
    known = [isa for isa in ISAS if isa == "portable" or (X86 and (isa != "amx" or tiles))]
    for name, isas in KERNELS.items():
        rows += [(SOURCES / f"{name}.cpp", ISAS[isa], f"_{isa}") for isa in isas if isa in known]
    return rows


class BuildEngine(build_ext):
    """Compiles the units side by side, each with its own flags, and links them."""

    def build_extension(self, ext: Extension) -> None:
        """Build the library where setuptools looks for the extension."""
        if ext.name != ENGINE:
            super().build_extension(ext)
            return
        folder = Path(self.build_temp) / "engine"
        extra = tuple(os.environ.get("FXQ_CXXFLAGS", "").split())
        rows = units(X86 and self._knows_tiles())
        jobs = [(path, (*FLAGS, *own, *extra), folder / (path.stem + suffix)) for path, own, suffix in rows]
        target = Path(self.get_ext_fullpath(ext.name))
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(lambda job: self._compile(*job), jobs))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(target), extra_postargs=["-pthread", *extra], target_lang="c++", build_temp=str(folder)
        )

    def _knows_tiles(self) -> bool:
        """Return whether the compiler and its assembler know AMX (g++ from 11, clang from 12)."""
        text = 'int main() { __asm__ volatile("tilerelease"); return 0; }'
        command = [*self.compiler.compiler_so, *TILES, "-x", "c++", "-c", "-", "-o", os.devnull]
        try:
            return subprocess.run(command, input=text, text=True, capture_output=True, check=False).returncode == 0
        except OSError:
            return False

    def _compile(self, source: Path, flags: tuple[str, ...], folder: Path) -> str:
        """Compile one unit into a folder of its own (objects are named after sources) and return the object.

        What stands from an earlier build is kept while nothing that the unit includes and no flag has changed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        needs, said = folder / "needs.d", folder / "flags.txt"
        (made,) = self.compiler.object_filenames([str(source)], output_dir=str(folder))
        if not self.force and said.exists() and said.read_text() == " ".join(flags) and fresh(Path(made), needs):
            return str(made)
        said.unlink(missing_ok=True)
        command = [*flags, "-MMD", "-MF", str(needs)]
        self.compiler.compile([str(source)], output_dir=str(folder), extra_postargs=command)
        said.write_text(" ".join(flags))
        return str(made)


def fresh(made: Path, needs: Path) -> bool:
    """Return whether an object is newer than every file that the compiler says it was made from."""
    if not made.exists() or not needs.exists():
        return False
    files = [Path(name) for name in needs.read_text().replace("\\\n", " ").split(":", 1)[1].split()]
    return all(file.exists() and file.stat().st_mtime < made.stat().st_mtime for file in files)


setup(
    ext_modules=[
        Extension(
            ENGINE,
            [str(path) for path in sorted(SOURCES.glob("*.cpp"))],
            depends=[str(path) for path in sorted(SOURCES.glob("*.h"))],
            language="c++",
            optional=True,
        ),
        Extension(
            "fxq.nn.kernels._dynamic",
            [str(path) for path in sorted(DYNAMIC.glob("*.cpp"))],
            depends=[str(path) for path in sorted(DYNAMIC.glob("*.h"))],
            language="c++",
            optional=True,
            extra_compile_args=list(FLAGS),
        ),
        Extension(
            "fxq.quant._counting",
            ["fxq/quant/csrc/counting.cpp"],
            language="c++",
            optional=True,
            extra_compile_args=list(FLAGS),
        ),
    ],
    cmdclass={"build_ext": BuildEngine},
)
