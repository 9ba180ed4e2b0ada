"""What SEED's loss costs: the exact form of kdcache against that of the released code.

One process times all forms by turns, so that a busy machine is busy for all of them alike; what is
compared is the ratio within a turn. Peak memory is taken in a fresh process for each form, as the
rise of the resident set above its level before the step (on a GPU: of what torch has allocated).

    python benchmarks/seed_loss.py                      # a table
    python benchmarks/seed_loss.py --json result.json   # and the figures behind it
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import describe_machine, in_words, processor, seconds, spread
from torch import Tensor
from torch.nn import functional

from kdcache.methods._sampled_ranking import SampledLogSumExp
from kdcache.methods._soft_ranking import attend, soft_ranking_loss
from kdcache.students import build_student

BATCH, DIM = 128, 128
LENGTHS = (16_384, 65_536)
STUDENT, SIDE = "resnet18", 64
TAU_STUDENT, TAU_TEACHER = 0.2, 0.01

Step = Callable[[], None]


def official_loss(student: Tensor, teacher: Tensor, queue: Tensor) -> Tensor:
    """SEED's loss as its released code computes it, in our words; `queue` is [D, K], as there.

    Each side gets a copy of the queue, its own column in front, and a dense softmax.
    """
    student_logits = student @ queue.clone().detach()
    teacher_logits = teacher @ queue.clone().detach()
    own_student = (student * teacher).sum(1, keepdim=True)
    own_teacher = (teacher * teacher).sum(1, keepdim=True)
    student_logits = torch.cat([own_student, student_logits], dim=1)
    teacher_logits = torch.cat([own_teacher, teacher_logits], dim=1)
    student_logits = student_logits / TAU_STUDENT
    ranking = functional.softmax(teacher_logits / TAU_TEACHER, dim=1)
    return -(ranking * functional.log_softmax(student_logits, dim=1)).sum(1).mean()


def fused_loss(student: Tensor, teacher: Tensor, negatives: Tensor) -> Tensor:
    """The loss as `--method seed` computes it."""
    return soft_ranking_loss(
        student,
        teacher,
        negatives,
        student_temperature=TAU_STUDENT,
        teacher_temperature=TAU_TEACHER,
    )


def sampled_loss(student: Tensor, teacher: Tensor, negatives: Tensor) -> Tensor:
    """The loss with 4,096 drawn and the 64 nearest negatives in the student's denominator."""
    with torch.no_grad():
        target, _ = attend(teacher, teacher, negatives, TAU_TEACHER)
    others = SampledLogSumExp(drawn=4096, nearest=64)(student, negatives, TAU_STUDENT)
    total = torch.logaddexp(others, (student * teacher).sum(1) / TAU_STUDENT)
    return (total - (student * target).sum(1) / TAU_STUDENT).mean()


def build_step(form: str, length: int, device: torch.device) -> Step:
    """Forward and backward of one form of the loss, on rows of its own."""
    torch.manual_seed(0)
    centres = functional.normalize(torch.randn(1000, DIM), dim=1)
    rows = centres[torch.randint(1000, (length + BATCH,))] + 0.08 * torch.randn(length + BATCH, DIM)
    rows = functional.normalize(rows, dim=1).to(device)
    negatives, teacher = rows[:length].clone(), rows[length:].clone()
    del rows
    student = functional.normalize(teacher + 0.05 * torch.randn_like(teacher), dim=1)
    student.requires_grad_()
    queue = negatives.T.contiguous() if form == "official" else negatives
    del negatives
    losses: dict[str, Callable[[], Tensor]] = {
        "official": lambda: official_loss(student, teacher, queue),
        "fused": lambda: fused_loss(student, teacher, queue),
        "sampled": lambda: sampled_loss(student, teacher, queue),
    }
    loss = losses[form]

    def step() -> None:
        student.grad = None
        loss().backward()

    return step


def build_student_step(device: torch.device) -> Step:
    """Forward and backward of the student alone."""
    network = build_student(STUDENT, image_size=SIDE).to(device).train()
    images = torch.randint(256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8, device=device)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(images).square().mean().backward()

    return step


def step_seconds(step: Step, device: torch.device) -> float:
    """Wall time of one step, with the device's queue empty before and after."""
    synchronise(device)

    def work() -> None:
        step()
        synchronise(device)

    return seconds(work)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(form: str, length: int, device: torch.device) -> int:
    """How far one step of a form lifts the memory of a fresh process."""
    command = [sys.executable, __file__, "--probe", form, str(length), "--device", str(device)]
    # By default glibc keeps freed memory for later, where a step would use it unseen.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return int(done.stdout)


def probe(form: str, length: int, device: torch.device) -> int:
    """The work of `peak_bytes`, in the process that is looked at."""
    build_step(form, 256, device)()  # loads code and starts threads, which is no part of it
    step = build_step(form, length, device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    # Building took more memory than is held now, so the high-water mark is lowered first.
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_bytes()
    step()
    return high_water_bytes() - before


def high_water_bytes() -> int:
    """The largest resident set of this process since the mark was lowered (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(device: torch.device, rounds: int, student_rounds: int) -> dict[str, Any]:
    """All figures; times in seconds."""
    forms = ("official", "fused", "sampled")
    steps = {(f, n): build_step(f, n, device) for n in LENGTHS for f in forms}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for key, step in steps.items():
            times[key].append(step_seconds(step, device))
    student_step, loss_step = build_student_step(device), steps["fused", LENGTHS[-1]]
    student_step()
    student_times, share = [], []
    for _ in range(student_rounds):
        loss_s = statistics.median(step_seconds(loss_step, device) for _ in range(3))
        student_times.append(step_seconds(student_step, device))
        share.append(loss_s / student_times[-1])
    memory = {key: peak_bytes(*key, device) for key in steps}
    rows = []
    for length in LENGTHS:
        for form in forms:
            against = zip(times[form, length], times["official", length], strict=True)
            rows.append(
                {
                    "negatives": length,
                    "form": form,
                    "step_s": spread(times[form, length]),
                    "time_ratio": spread([ours / theirs for ours, theirs in against]),
                    "peak_bytes": memory[form, length],
                    "memory_ratio": memory[form, length] / memory["official", length],
                }
            )
    return {
        "batch": BATCH,
        "dim": DIM,
        "losses": rows,
        "student": {
            "name": STUDENT,
            "side": SIDE,
            "step_s": spread(student_times),
            "negatives": LENGTHS[-1],
            "fused_share": spread(share),
        },
        "machine": describe_machine(
            device=torch.cuda.get_device_name() if device.type == "cuda" else processor(),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
        ),
    }


def table(result: dict[str, Any]) -> str:
    """The figures for people: medians, quartiles in brackets."""
    lines = [f"{'K':>7}  {'form':<9} {'ms a step':<22} {'time':<20} {'MB':>7}  memory"]
    for row in result["losses"]:
        step, ratio = row["step_s"], row["time_ratio"]
        took = in_words({key: 1e3 * value for key, value in step.items()}, ".1f")
        times = in_words(ratio)
        lines.append(
            f"{row['negatives']:>7,}  {row['form']:<9} {took:<22} {times:<20} "
            f"{row['peak_bytes'] / 1e6:>7.1f}  1/{1 / row['memory_ratio']:.0f}"
        )
    student = result["student"]
    share = student["fused_share"]
    lines.append(
        f"fused at {student['negatives']:,} against {student['name']} at {student['side']} px, "
        f"batch {result['batch']}, {1e3 * student['step_s']['median']:.0f} ms: "
        f"{in_words(share, '.1%')}"
    )
    machine = result["machine"]
    load = machine["load_average"][0]
    lines.append(
        f"{machine['device']}, {machine['threads']} threads of {machine['cores']} cores, load "
        f"{load:.1f}, torch {machine['torch']}, {machine['date']}"
    )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help=f"here: {default}")
    parser.add_argument("--rounds", type=int, default=11, help="turns of the losses")
    parser.add_argument("--student-rounds", type=int, default=5, help="turns of the student")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--probe", nargs=2, metavar=("FORM", "K"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.probe:
        print(probe(args.probe[0], int(args.probe[1]), device))
        return
    result = measure(device, args.rounds, args.student_rounds)
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
