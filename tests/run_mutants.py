"""Make each fact of ``docs/paper-to-code.md`` wrong, one after the other; the test of its row must fail.

``python tests/run_mutants.py`` (``make mutants``) applies one mutant of ``paper_mutants.py`` after the other to a copy
of the package and runs the first test that its row links. Words after the name of the script select rows that contain
them. It takes some minutes. Tests that need the real data sets (``$RETINANET_DATA``) are skipped without them.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from paper_mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
TIME_LIMIT = 300  # seconds for one test
WORKERS = 2
# Imported once, before the children are forked. The package itself is imported by each child.
IMPORTED = (
    "torch",
    "torchvision",
    "timm",
    "scipy.optimize",
    "supervision",
    "hypothesis",
    "pytest",
    "matplotlib",
    "tyro",
)


def run_in_child(source: Path, test: str, log: Path) -> None:
    """Run a test with the package in ``source``; the exit status is pytest's."""
    sys.path.insert(0, str(source))
    os.environ.update(PYTHONPATH=str(source), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    sys.dont_write_bytecode = True
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        import pytest

        options = ["-q", "-x", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
        status = int(pytest.main([*options, test]))
    os._exit(status)


def outcome(mutant: Mutant, test: str, copy: Path) -> str:
    """Apply a mutant to the package below ``copy`` and run the test of its row."""
    file = copy / "src" / "retinanet" / mutant.file
    original = file.read_text(encoding="utf-8")
    if original.count(mutant.old) != 1:
        return f"the text to replace occurs {original.count(mutant.old)} times in {mutant.file}"
    file.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    log = copy / "log.txt"
    process = multiprocessing.get_context("fork").Process(target=run_in_child, args=(copy / "src", test, log))
    try:
        process.start()
        process.join(TIME_LIMIT)
        if process.is_alive():
            process.kill()
            return f"not finished after {TIME_LIMIT} s"
    finally:
        file.write_text(original, encoding="utf-8")
    said = log.read_text(errors="replace")
    if (process.exitcode == 1 and "FAILED" in said) or "ERROR" in said:
        return ""
    if "skipped" in said.splitlines()[-1]:
        return "skipped"
    return f"the test passes (exit status {process.exitcode}): {' '.join(said.split())[-150:]}"


def tests_of_rows() -> dict[str, str]:
    """The first test of each mutant's row; for a child process, because this imports the package."""
    from test_paper_map import first_tests

    return first_tests()


def main() -> int:
    """Run the mutants of the chosen rows; return 1 if a test did not notice one."""
    words = sys.argv[1:]
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.row for word in words)]
    for name in IMPORTED:
        with contextlib.redirect_stdout(io.StringIO()):
            __import__(name)
    with multiprocessing.get_context("fork").Pool(1) as child:
        tests = child.apply(tests_of_rows)
    began, missed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
        copies: Queue[Path] = Queue()
        for number in range(WORKERS):
            copy = Path(folder) / str(number)
            shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
            copies.put(copy)

        def tried(mutant: Mutant) -> str:
            copy = copies.get()
            try:
                return outcome(mutant, tests[mutant.row], copy)
            finally:
                copies.put(copy)

        for mutant, fault in zip(chosen, pool.map(tried, chosen), strict=True):
            word = "ok" if not fault else "skipped" if fault == "skipped" else "MISSED"
            missed += word == "MISSED"
            print(f"{word:8}{mutant.row}: {tests[mutant.row].split('::')[1]}", flush=True)
            if word == "MISSED":
                print(f"        {fault}", flush=True)
    print(f"{len(chosen)} mutants, {missed} missed, {time.monotonic() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
