"""What the benchmarks beside this file write down alike: where and when, medians and quartiles."""

import os
import platform
import statistics
from datetime import date
from pathlib import Path
from typing import Any


def describe_machine(**more: Any) -> dict[str, Any]:
    """Date, cores, load and Python, and what the script has to add."""
    return {
        "date": date.today().isoformat(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        **more,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "count": len(values)}


def processor() -> str:
    """What the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
