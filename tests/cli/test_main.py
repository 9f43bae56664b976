"""The command line as a whole: help, unknown words, and one line for everything that fails, whatever the verb."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import retinanet
from commands import SMALL, Command, Said
from retinanet import cli


def fresh_python(code: str, *argv: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    return done.stdout


HEAVY = "heavy = {'torch', 'torchvision', 'timm', 'supervision', 'matplotlib', 'hotcoco', 'numpy'} & set(sys.modules)"


def test_import_is_light() -> None:
    assert fresh_python(f"import sys, retinanet; retinanet.RetinaNetError; {HEAVY}; print(heavy)") == "set()\n"


@pytest.mark.parametrize(
    "argv",
    [
        *(["--help"], ["--version"], [], ["data"]),
        *([verb, "--help"] for verb in ("train", "eval", "detect", "convert")),
    ],
)
def test_help_is_light(argv: list[str]) -> None:
    code = f"""
import sys
from retinanet.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code
{HEAVY}
print("heavy:", heavy)
"""
    said = fresh_python(code, *argv)
    assert len(said.splitlines()) > 1
    assert said.endswith("heavy: set()\n")


def test_installed_command_answers() -> None:
    command = Path(sys.executable).with_name("retinanet")
    if not command.exists():
        pytest.skip("the package is not installed with its command")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"retinanet {retinanet.__version__}\n"


def test_help_names_every_verb(run: Command) -> None:
    said = run("--help")
    assert said.code == 0
    assert said.err == ""
    assert all(verb in said.out for verb in cli.VERBS)


def test_help_of_a_verb_names_settings_and_defaults(run: Command) -> None:
    said = run("train", "--help")
    assert said.code == 0
    for flag in ("--recipe", "--resume", "--data.size", "--train.epochs", "--model.backbone", "--loss.gamma"):
        assert flag in said.out
    paper = run("train", "--recipe", "paper", "--help")
    assert "resnet50" in paper.out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian", "x"], "'retinanet train'"),
        (["evaluate"], "'retinanet eval'"),
        (["data", "samples"], "'retinanet data sample'"),
        (["quux"], "train, eval, detect"),
    ],
)
def test_unknown_verb(run: Command, words: list[str], hint: str) -> None:
    assert hint in run.fails(*words, code=2)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train", "parts", "--data.siez", "64"], "--data.size"),
        (["train", "parts", "--train.epoch", "3"], "--train.epochs"),
        (["detect", "w", "p", "--scroe", "0.2"], "--score"),
        (["eval", "w", "p", "--splitt", "val"], "--split"),
        (["train", "parts", "--data.size", "large"], "--data.size"),
        (["train", "parts", "--train.optimizer", "adam"], "adamw"),
        (["detect", "w", "p", "--format", "pascal"], "voc"),
        (["eval", "w", "p", "--precision", "int8"], "bf16"),
        (["train"], "DATA"),
    ],
)
def test_unknown_flags_and_values(run: Command, words: list[str], hint: str) -> None:
    said = run(*words)
    assert said.code == 2
    assert hint in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("verb", ["train", "eval", "detect"])
def test_output_folder_that_is_a_file(
    run: Command, weights: Path, parts: Path, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before the work is done, not after."""
    target = tmp_path / "out"
    target.write_text("in the way")
    arguments: dict[str, list[object]] = {
        "train": [parts, *SMALL],
        "eval": [weights, parts],
        "detect": [weights, parts / "images"],
    }

    def never(*_: object) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr("retinanet.model.RetinaNet.forward", never)
    line = run.fails(verb, *arguments[verb], "--out", target)
    assert str(target) in line
    assert "choose another" in line
    assert target.read_text() == "in the way"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_output_folder_without_permission(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "choose another" in run.fails("eval", weights, parts, "--out", tmp_path / "out")
        assert "choose another" in run.fails("eval", weights, parts, "--out", tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_wrong_weights(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        first = run.fails("eval", path, parts)
        assert run.fails("detect", path, parts / "images" / "000000.jpg", "--out", tmp_path / "o") == first
        return first

    assert "no such weights file" in refused(tmp_path / "none.safetensors")
    assert "best.safetensors" in refused(weights.parent)
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.pth")
    assert "pickled" in refused(tmp_path / "model.pth")
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors", {"format": "pt"})
    assert "not a retinanet/1 weights file" in refused(tmp_path / "other.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "plain.safetensors")
    assert "by another program" in refused(tmp_path / "plain.safetensors")
    content = weights.read_bytes()
    for length in (0, 5, 4000, len(content) - 1):
        (tmp_path / "cut.safetensors").write_bytes(content[:length])
        assert "not a complete safetensors file" in refused(tmp_path / "cut.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, I am a text file")
    assert "not a complete safetensors file" in refused(tmp_path / "text.safetensors")


def test_unknown_model_and_device(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    line = run.fails("train", parts, "--out", tmp_path / "run", *SMALL, "--model.backbone", "resnet500")
    assert "did you mean 'resnet50'" in line
    assert "quantum" in run.fails("eval", weights, parts, "--device", "quantum", code=2)


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore"), "--train.batch"),
        (MemoryError(), "--data.size"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x/metrics.jsonl"), "x/metrics.jsonl: No space left"),
    ],
)
def test_failures_of_the_machine(
    run: Command, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, hint: str
) -> None:
    monkeypatch.setattr("retinanet.training.api.train_job", fail_with(error))
    assert hint in run.fails("train", parts, "--out", tmp_path / "run", *SMALL)


def test_bugs_are_not_hidden(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinanet.training.api.train_job", fail_with(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["train", str(parts), "--out", str(tmp_path / "run"), *SMALL])


def test_ctrl_c_without_anything_to_save(run: Command, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinanet.training.api.read_train_val", fail_with(KeyboardInterrupt()))
    assert run("train", parts) == Said(130, "", "stopped\n")


def test_terminal_that_cannot_show_every_letter(weights: Path, parts: Path, tmp_path: Path) -> None:
    photo = parts / "images" / "000000.jpg"
    code = "import sys; from retinanet.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "detect", weights, photo, "--out", tmp_path],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
    )
    assert b"score \\u2265 0.3" in done.stdout


def _has_huge_pages() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    tells = Path("/proc/self/smaps")  # what was asked of a program's memory
    return setting.is_file() and "[never]" not in setting.read_text() and "VmFlags" in tells.read_text()


@pytest.mark.skipif(not _has_huge_pages(), reason="no transparent huge pages, or none that are told of")
def test_large_tensors_ask_for_huge_pages() -> None:
    """The system may have none left to give: the test is for what was asked, the flag `hg` of the tensor's memory."""
    code = """
from pathlib import Path
from retinanet import cli
cli.main(["data", "inspect", "/nowhere"])  # any verb
import torch
tensor = torch.ones(64 << 20, dtype=torch.uint8)
middle = tensor.data_ptr() + (32 << 20)
inside = False
for line in Path("/proc/self/smaps").read_text().splitlines():
    first, *others = line.split()
    if not first.endswith(":"):
        begin, end = (int(address, 16) for address in first.split("-"))
        inside = begin <= middle < end
    elif inside and first == "VmFlags:":
        print(*others)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "hg" in done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["train", "--help"]])
def test_a_reader_that_ends_early_is_no_error(argv: list[str]) -> None:
    command = [sys.executable, "-m", "retinanet", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["train", "--help"]])
def test_output_that_cannot_be_written_is_one_line(argv: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "retinanet", *argv]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1
