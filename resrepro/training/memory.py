"""Keeping the memory of one step for the next, where the C library would give it back to the system.

A step on a CPU allocates hundreds of megabytes and frees them again. glibc returns such blocks, so that
each step pays for clearing the pages anew; and large pages save looking the addresses of small ones up.
"""

import ctypes
import os
import platform
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
MADV_HUGEPAGE = 14  # sys/mman.h
LARGE_PAGE = 2**21
SHARE = 2  # one part of so many of the memory is asked for in large pages


def keep_memory() -> bool:
    """Let this process keep what it has allocated, in large pages; for the rest of its life.

    Does nothing, and returns False, where the C library is not glibc. Nothing is taken up front: the
    address range that is set aside costs memory only where it is used.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    kept = library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, -1)
    _ask_for_large_pages(library)
    return bool(kept)


def _ask_for_large_pages(library: ctypes.CDLL) -> None:
    """Reserve a range of the heap, ask for large pages in it, and give it back to the heap."""
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE
    place = library.malloc(size)
    if place is None:  # a limit on the address space, or a system that promises no more than it has
        return
    first = -(-place // LARGE_PAGE) * LARGE_PAGE
    last = (place + size) // LARGE_PAGE * LARGE_PAGE
    if last > first:
        library.madvise(first, last - first, MADV_HUGEPAGE)
    library.free(place)
