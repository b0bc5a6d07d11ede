"""Does this interpreter have what requirement files ask for? Exit code 0 = yes. Needs nothing but Python.

Understands the lines that our files have: NAME, NAME>=VERSION and comments. opencv-python and its variants count as the
same. A package that not every machine gets (NAME>=VERSION; MARKER) may be missing. Two versions that are new enough and
yet fail together are a problem, too.
"""
import argparse
import re
import sys
from importlib import metadata
from pathlib import Path

_SAME = {"opencv-python-headless": ("opencv-python-headless", "opencv-python", "opencv-contrib-python",
                                    "opencv-contrib-python-headless")}
# (package, release before which it fails beside, package, release from which on): wheels of OpenCV before 4.10 were
# built for numpy 1, do not say so, and fail to import beside numpy 2.
_APART = [("opencv-python-headless", "4.10", "numpy", "2.0")]


def release(version: str) -> tuple[int, ...]:
    """'2.11.0+cu128' -> (2, 11, 0)."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version).group().split("."))


def installed(name: str) -> str | None:
    """The version of a package, or of a package that stands in for it."""
    for candidate in _SAME.get(name, (name,)):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return None


def problems(path: Path) -> list[str]:
    """A line for each requirement that is not met.

    Raises:
        ValueError: a line of another form.
    """
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.split("#")[0].strip()
        if not line or ";" in line:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:>=([0-9.]+))?", line)
        if not match:
            raise ValueError(f"{path}:{number}: expected NAME or NAME>=VERSION, got {line!r}")
        name, least = match.groups()
        version = installed(name)
        if version is None:
            lines.append(f"{name} is not installed")
        elif least and release(version) < release(least):
            lines.append(f"{name} {version} is older than {least}")
    return lines


def clashes() -> list[str]:
    """A line for each pair of installed packages that are known to fail together."""
    lines = []
    for old, before, new, since in _APART:
        older, newer = installed(old), installed(new)
        if older and newer and release(older) < release(before) and release(newer) >= release(since):
            lines.append(f"{old} {older} fails beside {new} {newer}; from {before} on it does not")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    lines = [problem for path in args.files for problem in problems(path)] + clashes()
    if lines and not args.quiet:
        print("\n".join(lines), file=sys.stderr)
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
