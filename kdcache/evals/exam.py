"""An exam: a subject, the images it is judged by, and what else a protocol may ask for."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from kdcache.evals.dataset import LabelledSet, Splits
from kdcache.evals.features import Features, extract_features
from kdcache.evals.kept import keep_features
from kdcache.evals.subject import Subject
from kdcache.progress import Bar, Tell
from kdcache.store import Cache
from kdcache.views import get_policy


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What some protocols need besides the data set."""

    transfer: Splits | None = None
    """Another labelled data set."""
    ood: LabelledSet | None = None
    """Other images of the same classes."""
    labelled_list: Path | None = None
    """The names of the training images whose labels may be used, one a line."""
    teacher: Cache | Subject | None = None
    """What the subject is compared with."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Exam:
    """One subject under examination; features are computed once for all protocols."""

    subject: Subject
    splits: Splits
    device: torch.device
    workers: int
    bar: Bar
    tell: Tell
    """Told of images that cannot be read, and are not scored."""
    beside: Beside = Beside()
    keep: Path | None = None
    """A folder that keeps features between commands."""
    view: str | None = None
    """Judge by this view, whatever the protocols have: for a subject that has only one."""
    seed: int = 0
    """Of whatever is drawn: a layer's start, the order of images, subsets, views."""
    _seen: dict[tuple[str, ...], Features] = field(default_factory=dict, repr=False)

    def features(self, part: LabelledSet, view: str, of: Subject | None = None) -> Features:
        """What the subject (or `of`) says of one view of each of these images.

        Raises:
            DataError: not one image could be read, or the network gave NaN or infinity.
        """
        subject, view = of or self.subject, self.view or view
        key = (subject.name, subject.architecture, part.fingerprint, view)
        if key not in self._seen:
            found = self._ask(subject, part, view)
            if found.unreadable:
                self.tell(f"{len(found.unreadable):,} images of `{found.source}` cannot be read")
            self._seen[key] = found
        return self._seen[key]

    def _ask(self, subject: Subject, part: LabelledSet, view: str) -> Features:
        policy, device, workers = get_policy(view), self.device, self.workers
        if self.keep is not None:
            return keep_features(
                self.keep, subject, part, policy, device=device, workers=workers, bar=self.bar
            )
        title = f"features of {subject.name}"
        with self.bar(title, total=len(part.images), unit="images") as progress:
            return extract_features(
                subject.network,
                part.images,
                image_size=subject.image_size,
                policy=policy,
                ids=part.ids,
                device=device,
                workers=workers,
                progress=progress,
            )
