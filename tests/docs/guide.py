"""What the guide shows: its pages, their code blocks, and the commands in these."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("docs/*.md"),
        ROOT / "README.md",
        ROOT / "configs/README.md",
        ROOT / "CONTRIBUTING.md",
    ]
)
_SHELLS = ("", "bash", "console", "sh", "shell")
_FENCE = re.compile(
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?[^\n]*\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    """Path of the file that it is, if any."""
    text: str

    @property
    def is_python(self) -> bool:
        return self.language == "python"

    def commands(self) -> list[str]:
        """The lines of a shell's block that name kdcache, continued ones joined."""
        if self.language not in _SHELLS:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        lines = [line.strip().removeprefix("$ ") for line in lines]
        return [line for line in lines if re.search(r"\bkdcache(_cli)?[ \[]", line)]


def name_of(page: Path) -> str:
    """The page's path in the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [
        Block(found["language"], found["title"] or "", found["text"])
        for found in _FENCE.finditer(page.read_text())
    ]


def tokens(command: str) -> list[str]:
    """A command's words, without a comment behind it."""
    return shlex.split(command, comments=True)


def spans(page: Path) -> list[str]:
    """The pieces of code in running text and tables."""
    return re.findall(r"`([^`\n]+)`", _FENCE.sub("", page.read_text()))
