"""A plan: what an extraction will take, and after how many epochs of students it pays."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from kdcache.errors import ConfigError
from kdcache.extract import Extraction
from kdcache.extract.begin import made_with
from kdcache.images import ImageSet, index_images, refuse_suspects, take_rows
from kdcache.plan.forecast import (
    Epochs,
    Forecast,
    Machines,
    forecast_epochs,
    forecast_extraction,
)
from kdcache.plan.question import Question, no_images
from kdcache.plan.rates import Rates
from kdcache.precision import settle
from kdcache.recipe import Recipe
from kdcache.store import CacheSize
from kdcache.table import format_table
from kdcache.teachers import Teacher

SAMPLE = 64
"""Images that rates are measured on."""
_PATH_BYTES = 32
"""Of a path, where no image is at hand to tell."""


@dataclass(frozen=True)
class Plan:
    """All that can be told before anything is run."""

    question: Question
    rates: Rates
    machines: Machines
    size: CacheSize
    extraction: Forecast
    epochs: Epochs | None
    price: float | None
    """Of an hour of a GPU (or, without one, of a node), in whatever currency."""

    @property
    def break_even(self) -> float | None:
        """Epochs after which the extraction has paid for itself."""
        if self.epochs is None:
            return None
        # All the time that the processes of the extraction are paid for.
        return self.epochs.break_even(self.extraction.total_s * self._processes)

    @property
    def _processes(self) -> int:
        return self.machines.nodes * self.machines.gpus

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; times in seconds."""
        job, student = self.question.job, self.question.student
        asked: dict[str, Any] = {
            **self.question.about(),
            "images": self.question.num_images,
            "views": job.num_views,
            "batch_size": job.batch_size,
            "machines": asdict(self.machines),
        }
        if student is not None:
            asked |= {"epochs": student.train.epochs, "batch": student.train.batch_size}
        whole, under_way = self.size.whole, self.size.under_way
        return {
            "asked": asked,
            "rates": self.rates.model_dump(),
            "files": whole.num_files,
            "bytes": whole.num_bytes,
            "parts": {name: asdict(part) for name, part in sorted(self.size.parts.items())},
            "under_way": asdict(under_way),
            "extraction": asdict(self.extraction),
            "epoch": None if self.epochs is None else asdict(self.epochs),
            "break_even_epochs": self.break_even,
            "cost": self._costs(),
        }

    def lines(self) -> list[str]:
        """What a person wants to know."""
        return [*self._size_lines(), "", *self._time_lines(), *self._epoch_lines()]

    def _size_lines(self) -> list[str]:
        job, whole = self.question.job, self.size.whole
        arrays = ", ".join(f"{s.name} {s.dim} {s.dtype}" for s in job.array_specs())
        rows = [
            [name, f"{part.num_files:,}", _bytes(part.num_bytes)]
            for name, part in sorted(
                self.size.parts.items(), key=lambda item: item[1].num_bytes, reverse=True
            )
        ]
        rows.append(["all", f"{whole.num_files:,}", _bytes(whole.num_bytes)])
        under_way = self.size.under_way
        return [
            f"{self.question.num_images:,} images x {job.num_views} views (`{job.policy.name}`, "
            f"{job.teacher.image_size} px) by `{job.teacher.name}`: {arrays}",
            "",
            format_table(["cache", "files", "bytes"], rows),
            f"{whole.num_bytes:,} bytes; while it is made up to {_bytes(under_way.num_bytes)} and "
            f"{under_way.num_files:,} small files more",
        ]

    def _time_lines(self) -> list[str]:
        rates, machines, found = self.rates, self.machines, self.extraction
        unit = {
            "index": rates.index_s, "images": rates.decode_s, "teacher": rates.teacher_s,
            "write": rates.write_s, "seal": rates.seal_s,
        }  # fmt: skip
        what = {
            "index": "an image", "images": f"an image, {_unit(rates.view_s)} a view",
            "teacher": "a view", "write": "a view", "seal": "a view",
        }  # fmt: skip
        rows = [
            [name, f"{_unit(unit[name])} {what[name]}", _time(s), f"{s / found.total_s:.0%}"]
            for name, s in found.stages.items()
        ]
        used = (
            f"{machines.nodes:,} x {machines.gpus} "
            f"{'GPUs' if rates.device == 'cuda' else 'CPU processes'}, "
            f"{machines.workers} rendering processes each, {rates.cores} cores a node"
        )
        lines = [
            f"rates: {rates.machine}; {used}",
            "",
            format_table(["stage", "rate", "alone", "of the whole"], rows),
            f"extraction: {_time(found.total_s)}; {_words(found.binds)} binds",
        ]
        return lines + [f"{what}: {cost:,.2f}" for what, cost in self._costs().items()]

    def _epoch_lines(self) -> list[str]:
        recipe, epochs = self.question.student, self.epochs
        if recipe is None or epochs is None:
            return []
        rows = []
        for name, of in (("cached", epochs.cached), ("live", epochs.live)):
            stages = [_time(of.stages.get(stage, 0.0)) for stage in _EPOCH_STAGES]
            rows.append([name, _time(of.total_s), *stages, _words(of.binds)])
        num, even = recipe.train.epochs, self.break_even
        saved = (epochs.live.total_s - epochs.cached.total_s) * num
        pays = (
            "the cache never pays: looking up is no faster than the teacher live"
            if even is None
            else f"the cache has paid for itself after {even:,.1f} epochs (of all students "
            f"together); {num} epochs live would take {_time(epochs.live.total_s * num)}, "
            f"from the cache {_time(epochs.cached.total_s * num)}: {_time(saved)} less"
        )
        measured = self.rates.student_batch or recipe.train.batch_size
        note = f" (a step was measured with {measured})" * (measured < recipe.train.batch_size)
        return [
            "",
            f"`{recipe.method}`, student `{recipe.student.name}` at {recipe.student.image_size} px,"
            f" batch {recipe.train.batch_size}{note}, on one device:",
            "",
            format_table(["an epoch", "in all", *_EPOCH_STAGES, "binds"], rows),
            pays,
        ]

    def _costs(self) -> dict[str, float]:
        """By what is paid for, where a price is known."""
        if self.price is None:
            return {}
        hour = self.price / 3600
        costs = {"cost of the extraction": self.extraction.total_s * hour * self._processes}
        if self.epochs is not None:
            costs["cost of an epoch, cached"] = self.epochs.cached.total_s * hour
            costs["cost of an epoch, live"] = self.epochs.live.total_s * hour
        return costs


_EPOCH_STAGES = ("images", "step", "teacher")


def ask(
    images: ImageSet | None,
    teacher: Teacher,
    settings: Extraction,
    *,
    num_images: int | None = None,
    device: torch.device,
    student: Recipe | None = None,
) -> Question:
    """The question that these settings put.

    Args:
        images: all of them, or some that stand for the others; None: nobody has them yet.
        num_images: how many there will be; as many as are given unless it is said.

    Raises:
        ConfigError: the settings do not fit each other.
        DataError: some of the images are none.
        TeacherError: the teacher cannot take the small crops of the policy.
    """
    settings.check(teacher)
    if images is None:
        if num_images is None:
            raise ConfigError("neither images nor their number are given", hint="--data DIR")
        classes: tuple[str, ...] = ()
        sample, index = no_images()
        path_bytes = num_images * _PATH_BYTES
    else:
        num_images = num_images or len(images)
        rows = np.unique(np.linspace(0, len(images) - 1, min(SAMPLE, len(images)), dtype=np.int64))
        sample = take_rows(images, rows)
        index, classes = index_images(sample), images.classes
        refuse_suspects(sample, index, hint="take them out of the folder")
        there = sum(len(path.encode()) for path in images.paths)
        path_bytes = round(there * num_images / len(images))
    job = settings.job(sample, index, teacher, settle(settings.precision, device))
    question = Question(job, num_images, classes, path_bytes, made_with(device), student)
    if student is not None:
        _check_student(question, student)
    return question


def _check_student(question: Question, student: Recipe) -> None:
    """Refuse a method that the cache would not serve."""
    question.teacher_side(student)
    asked, batch = student.run.policy or student.method_class.views, student.train.batch_size
    if asked != question.job.policy.name:
        raise ConfigError(
            f"`{student.method}` is to be trained on `{asked}` views, and "
            f"`{question.job.policy.name}` ones would be cached",
            hint=f"--policy {asked}, or --set run.policy={question.job.policy.name}",
        )
    if batch > question.num_images:
        raise ConfigError(
            f"a batch of {batch} is larger than the {question.num_images:,} images",
            hint="--set train.batch_size=...",
        )


def make_plan(
    question: Question, rates: Rates, machines: Machines, *, price: float | None = None
) -> Plan:
    """The answer.

    Raises:
        ConfigError: the rates say too little.
    """
    epochs = None
    if question.student is not None:
        epochs = forecast_epochs(question, rates, machines.workers)
    return Plan(
        question,
        rates,
        machines,
        question.size(),
        forecast_extraction(question, rates, machines),
        epochs,
        price,
    )


def _bytes(count: int) -> str:
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    power = min(len(str(count)) - 1, 17) // 3
    return f"{count:,.0f} B" if power == 0 else f"{count / 1000**power:,.1f} {units[power]}"


def _time(seconds: float) -> str:
    for size, unit in ((48 * 3600, "days"), (2 * 3600, "h"), (120, "min")):
        if seconds >= size:
            per = {"days": 86400, "h": 3600, "min": 60}[unit]
            return f"{seconds / per:,.1f} {unit}"
    return f"{seconds:.3g} s"


def _unit(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _words(stage: str) -> str:
    return "the processor, which all stages share," if stage == "processor" else f"`{stage}`"
