"""The README works as it stands, word for word."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from eplb.formats.plans import read_plan
from eplb.formats.traces import read_trace

from .helpers import ROOT, SAMPLES, eplb

README = (ROOT / "README.md").read_text()


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write in that has the samples."""
    (tmp_path / "sample_loads").symlink_to(SAMPLES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_commands_run(elsewhere: Path) -> None:
    """Every command of the console block, in order."""
    commands = [
        line.removeprefix("$ eplb ")
        for block in _blocks(README, "console")
        for line in block.splitlines()
        if line.startswith("$ eplb ")
    ]
    assert len(commands) >= 5
    for command in commands:
        ending = eplb(*shlex.split(command))
        assert ending.code == 0, f"{command}: {ending.err}"
    assert read_plan("plan.json").placement.num_ranks == 8
    assert read_plan("published.json").placement.duplicates() == []


def test_readme_output_is_real(elsewhere: Path) -> None:
    """What the README shows under a command is what the command prints."""
    blocks = _blocks(README, "text")
    assert blocks
    for block in blocks:
        command, _, expected = block.partition("\n")
        said = eplb(*shlex.split(command.removeprefix("$ eplb "))).out
        assert re.sub(r"[\d.]+ s$", "… s", said.strip(), flags=re.M) == re.sub(
            r"[\d.]+ s$", "… s", expected.strip(), flags=re.M
        )


def test_readme_python_runs(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python block, as it is."""
    (code,) = _blocks(README, "python")
    exec(compile(code, "README.md", "exec"), {})
    assert float(capsys.readouterr().out.split()[0]) > 0.85
    assert read_plan("plan.json").placement.num_nodes == 4


def test_documents_link_to_files_that_exist() -> None:
    """No link between the project's own pages is broken."""
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("sample_loads/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_sample_has_its_provenance() -> None:
    """Each file has a line, and is real or synthetic by name."""
    text = (SAMPLES / "README.md").read_text()
    for path in SAMPLES.iterdir():
        if path.name == "README.md":
            continue
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{path.name}`")]
        assert ("synthetic" in path.name) == ("| synthetic |" in line) != ("**real**" in line)


def test_synthetic_samples_are_what_their_command_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Number for number."""
    text = (SAMPLES / "README.md").read_text()
    commands = re.findall(r"`(eplb gen [^`]+)`", text)
    assert len(commands) == 3
    monkeypatch.chdir(tmp_path)
    for command in commands:
        args = shlex.split(command)[1:]
        assert eplb(*args).code == 0
        made, kept = (read_trace(str(folder / args[-1])).trace for folder in (tmp_path, SAMPLES))
        assert np.array_equal(made.tokens, kept.tokens)  # type: ignore[union-attr]


def test_documented_exit_codes_agree_with_help() -> None:
    """The table of the documentation and `eplb --help` name the same codes."""
    documented = re.findall(r"^\| (\d+) \|", (ROOT / "docs/files.md").read_text(), flags=re.M)
    helped = re.findall(r"^ +(\d+) +\w", eplb("--help").out, flags=re.M)
    assert documented == helped == ["0", "1", "2", "3", "4", "130"]
