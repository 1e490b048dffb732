"""The loader child: compile through BCC, load, pin, exit. The only user of BCC.

    python -m minuteman.dataplane.loader --pins FOLDER --cache FOLDER \
        --vips N --slots N --backends N --conns N

It is a process of its own so that the agent carries no LLVM. Nothing is attached here. It writes
nothing to standard output, says what went wrong in its last line on standard error, and returns an
exit code of errors.py.

The programs use UAPI structs only, so they compile without the running kernel's headers: against a
small tree made of the C library's copy of the UAPI headers and a few stubs.
"""

from __future__ import annotations

import argparse
import errno
import os
import platform
import resource
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from minuteman.dataplane import bpf, layout, pins, probe
from minuteman.dataplane.recipe import Recipe
from minuteman.errors import MinutemanError, UnsupportedKernelError
from minuteman.privileges import end_with_parent
from minuteman.reconcile.kernelstate import Limits

SECOND_LOOKS = ("connect4", "connect6", "sendmsg4", "sendmsg6")
"""Programs whose rare cases are left to another one, `<name>_again`, in the map `again_<name>`."""

NO_HOOK = -1
"""BCC's attach type of a program that needs none."""

STUBS = {
    "include/linux/kconfig.h": """
        #pragma once
        #define CONFIG_BPF_SYSCALL 1
        typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32;
        typedef unsigned long long u64; typedef signed char s8; typedef short s16; typedef int s32;
        typedef long long s64; typedef _Bool bool;
        typedef __SIZE_TYPE__ size_t; typedef __UINTPTR_TYPE__ uintptr_t;
        #ifndef NULL
        #define NULL ((void *)0)
        #endif
    """,
    # BCC injects its own copy of this one.
    "include/uapi/linux/bpf.h": "",
    "include/linux/log2.h": "",
    # Features are probed; the version only has to be a number.
    "include/linux/version.h": """
        #pragma once
        #define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
        #define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)
    """,
    "include/asm/page.h": "",
}


def header_tree(cache: Path, headers: Path = Path("/usr/include")) -> Path:
    """A folder that BCC takes for the kernel's source, whole or not there at all.

    It is made once for each version of the installed headers: an upgrade changes their folder.

    Errors: UnsupportedKernelError when the UAPI headers are not installed.
    """
    asm = headers / f"{platform.machine()}-linux-gnu" / "asm"
    asm = asm if asm.is_dir() else headers / "asm"
    if not (headers / "linux" / "in.h").exists() or not asm.is_dir():
        raise UnsupportedKernelError(
            f"find UAPI headers in {headers}", errno.ENOENT, "install the package linux-libc-dev"
        )
    tree = cache / f"headers-{platform.machine()}-{(headers / 'linux').stat().st_mtime_ns}"
    if tree.is_dir():
        return tree
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=cache))
    links = {"linux": headers / "linux", "asm": asm, "asm-generic": headers / "asm-generic"}
    for name, target in links.items():
        link = made / "include" / "uapi" / name
        link.mkdir(parents=True)
        for header in target.iterdir():
            (link / header.name).symlink_to(header)
    for name, text in STUBS.items():
        stub = made / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.unlink(missing_ok=True)
        stub.write_text(text, encoding="utf-8")
    with suppress(OSError):  # another one was faster: its tree is as good
        made.rename(tree)
    return tree


def compile_and_pin(where: pins.Pins, cache: Path, limits: Limits) -> None:
    """Compile and load the programs, and pin them and their maps; pinned maps are taken on.

    Errors: UnsupportedKernelError with the compiler's or the verifier's words on standard error;
    LayoutError when the C structs, a pinned map and layout.py differ.
    """
    os.environ["BCC_KERNEL_SOURCE"] = str(header_tree(cache))
    # Before Linux 5.11 maps count as locked memory.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
    try:
        from bcc import BPF
    except ImportError as exc:
        raise UnsupportedKernelError(
            "import bcc", errno.ENOENT, "install the package python3-bpfcc"
        ) from exc
    shapes = {name: made.shape for name, made in layout.map_layouts(limits).items()}
    where.make_folders()
    where.check_maps(shapes)
    recipe = Recipe.of(where.maps, limits)
    try:
        program = BPF(text=recipe.text.encode(), cflags=recipe.flags)
    except Exception as exc:  # BCC raises nothing more precise
        raise UnsupportedKernelError("compile the programs", 0, str(exc)) from exc
    where.check_maps(shapes)
    kinds = {
        "sock_ops": BPF.SOCK_OPS,
        "sock_release": BPF.CGROUP_SOCK,
        **dict.fromkeys(pins.UNATTACHED, BPF.SCHED_CLS),
    }

    def load(name: str, attach_type: int) -> int:
        kind = kinds.get(name, BPF.CGROUP_SOCK_ADDR)
        try:
            return int(program.load_func(name.encode(), kind, attach_type=attach_type).fd)
        except Exception as exc:
            raise UnsupportedKernelError(f"load {name}", 0, str(exc)) from exc

    about = bpf.open_pin(where.maps / "about")
    bpf.update(about, layout.SLOT.pack(0), layout.About.ours().pack())
    for name in SECOND_LOOKS:
        array = bpf.open_pin(where.maps / f"again_{name}")
        second = load(f"{name}_again", pins.PROGRAMS[name])
        bpf.update(array, layout.SLOT.pack(0), layout.SLOT.pack(second))
        os.close(array)
    for name, attach_type in {**pins.PROGRAMS, **dict.fromkeys(pins.UNATTACHED, NO_HOOK)}.items():
        if name != "sock_release" or probe.has_release():
            _replace_pin(load(name, attach_type), where.programs / name)
    bpf.update(about, layout.SLOT.pack(0), layout.About.ours(recipe.digest).pack())
    os.close(about)


def _replace_pin(fd: int, path: Path) -> None:
    path.unlink(missing_ok=True)
    bpf.pin(fd, path)


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python -m minuteman.dataplane.loader`."""
    parser = argparse.ArgumentParser(prog="minuteman.dataplane.loader", description=__doc__)
    parser.add_argument("--pins", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    for capacity in ("vips", "slots", "backends", "conns"):
        parser.add_argument(f"--{capacity}", type=int, required=True)
    options = parser.parse_args(arguments)
    limits = Limits(options.vips, options.slots, options.backends, options.conns)
    end_with_parent()
    try:
        compile_and_pin(pins.Pins.ours(options.pins, limits), options.cache, limits)
    except MinutemanError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
