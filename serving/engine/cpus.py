"""How many processors this process may really use.

ONNX Runtime starts one thread per core of the machine whatever the affinity mask and the control
group of the container say, so a container limited to two cores of a large machine would run dozens
of threads on two.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CGROUP_SELF = Path("/proc/self/cgroup")


def available_cpus(root: Path = _CGROUP_ROOT, self_file: Path = _CGROUP_SELF) -> int:
    """Return the processors allowed by affinity and by the control group's quota, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = cgroup_quota(root, self_file)
    if quota is not None:
        count = min(count, math.ceil(quota))
    return max(1, count)


def cgroup_quota(root: Path = _CGROUP_ROOT, self_file: Path = _CGROUP_SELF) -> float | None:
    """Return the smallest processor quota on the way up the control groups, or None if unlimited.

    Version 2 has ``cpu.max`` ("quota period", or "max period"), version 1 ``cpu.cfs_quota_us``
    (-1 is unlimited) and ``cpu.cfs_period_us``. A limit of any ancestor applies.
    """
    quotas = []
    for folder in _groups(root, self_file):
        quota = _quota_of(folder)
        if quota is not None:
            quotas.append(quota)
    return min(quotas, default=None)


def _groups(root: Path, self_file: Path) -> list[Path]:
    try:
        lines = self_file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            mount = root
        elif "cpu" in controllers.split(","):
            mount = root / "cpu"
        else:
            continue
        group = mount / path.lstrip("/")
        # Inside a container the path may be the host's and not exist here; the mount itself is
        # then the container's own group.
        folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return folders


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            words = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            words = [
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            ]
        quota, period = int(words[0]), int(words[1])
    except (OSError, ValueError, IndexError):
        return None
    return quota / period if quota > 0 and period > 0 else None
