"""How fast a run was, from the throughput that its metrics hold.

A record's seconds are the images since the last one divided by its images a second. They take in
all that happens between two records (rendering, steps, checkpoints) but examinations. The time from
a restart back to where the run stood is not in the log, and neither is the start itself.
"""

from dataclasses import dataclass

from kdcache.report.read import RunFacts


@dataclass(frozen=True)
class Timing:
    """A run's speed."""

    images_per_s: float
    """All images by all of the time."""
    slowest: float
    fastest: float
    """Rates of single records."""
    total_s: float
    epoch_s: float
    """One epoch at the overall rate."""
    num_steps: int
    """Those whose time is known."""


def timing_of(run: RunFacts) -> Timing | None:
    """None where the metrics say nothing of throughput."""
    # Records of an examination stand between those of the training, and have no rate.
    timed = [record for record in run.records if "images_per_s" in record]
    ends = [int(record["step"]) for record in timed]
    steps = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    known = [(n, r["images_per_s"]) for n, r in zip(steps, timed, strict=True)]
    known = [(n, rate) for n, rate in known if rate > 0]
    if not known or run.steps_per_epoch is None:
        return None
    num_steps = sum(n for n, _ in known)
    total_s = sum(n * run.batch_size / rate for n, rate in known)
    rate = num_steps * run.batch_size / total_s
    return Timing(
        images_per_s=rate,
        slowest=min(rate for _, rate in known),
        fastest=max(rate for _, rate in known),
        total_s=total_s,
        epoch_s=run.steps_per_epoch * run.batch_size / rate,
        num_steps=num_steps,
    )
