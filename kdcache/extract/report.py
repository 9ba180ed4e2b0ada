"""What an extraction took, stage by stage, and which stage it waited for."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """Where the time went; seconds are added up over teachers, and over processes that render."""

    teachers: int = 1
    """Teachers whose seconds are added up."""
    renderers: int = 0
    """Processes that render for each; 0: the teacher's own process does."""
    views: int = 0
    """Views of images that were shown to the teachers."""
    waiting_s: float = 0.0
    """For rendered views: the images bind when this is large."""
    teacher_s: float = 0.0
    """Copying to the device, forward pass, copying back."""
    writing_s: float = 0.0
    """Pieces and shards."""
    decode_s: float = 0.0
    """Reading, checking and decoding, in all processes that do."""
    render_s: float = 0.0
    """Drawing, crops, colour, witnesses."""
    copy_s: float = 0.0
    """To the device, by its own clock; perhaps while it computes something else."""
    forward_s: float = 0.0
    """The teacher and its head, by the device's own clock."""
    unreadable: dict[int, str] = field(default_factory=dict)
    """All rows of the cache without targets, and why."""

    @property
    def total_s(self) -> float:
        """Seconds in all."""
        return self.waiting_s + self.teacher_s + self.writing_s

    def add(self, other: "Report") -> None:
        """Add what was done besides, or before, by as many teachers or fewer."""
        self.teachers = max(self.teachers, other.teachers)
        self.renderers = max(self.renderers, other.renderers)
        for name in _SECONDS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.views += other.views

    def lines(self) -> list[str]:
        """What a person wants to know of it, in two lines; none where nothing was to be done."""
        if not self.views:
            return []
        shares = {
            "teacher": self.teacher_s,
            "waiting for images": self.waiting_s,
            "writing": self.writing_s,
        }
        split = ", ".join(f"{name} {s / self.total_s:.0%}" for name, s in shares.items())
        who, each = (f" of {self.teachers} teachers", " each") if self.teachers > 1 else ("", "")
        stages = {
            "decode": self.decode_s,
            "augment": self.render_s,
            "copy": self.copy_s,
            "teacher": self.forward_s,
            "write": self.writing_s,
        }
        took = ", ".join(f"{name} {_milliseconds(s / self.views)}" for name, s in stages.items())
        return [
            f"{self.views:,} views in {self.total_s:.1f} s{who} "
            f"({self.views / self.total_s:,.0f}/s{each}): {split}",
            f"a view takes: {took}; {self._what_binds(stages)}",
        ]

    def _what_binds(self, stages: dict[str, float]) -> str:
        """The slowest stage, and how much faster the rest is."""
        side_by_side = max(1, self.renderers)
        each = {
            name: s / side_by_side if name in ("decode", "augment") else s
            for name, s in stages.items()
        }
        slowest = max(each, key=lambda name: each[name])
        if not self.renderers:  # one after the other
            share = each[slowest] / sum(each.values())
            return f"{slowest} binds, {share:.0%} of a process that does all in turn"
        images = each["decode"] + each["augment"]
        teacher = each["copy"] + each["teacher"] + each["write"]
        first, second = max(images, teacher), min(images, teacher)
        other = "the teacher" if images > teacher else f"{self.renderers} processes with images"
        return f"{slowest} binds: {other} could keep {first / max(second, 1e-9):.1f} times the pace"


_SECONDS = (
    "waiting_s", "teacher_s", "writing_s", "decode_s", "render_s", "copy_s", "forward_s",
)  # fmt: skip


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms"
