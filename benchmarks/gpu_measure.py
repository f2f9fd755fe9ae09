"""The parts of ``benchmarks/gpu.py`` that measure: each takes ``(options, results, deadline)`` and records rows."""

from __future__ import annotations

import argparse
import collections
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

import metagrad
from contestants import Contestant, exact_hessian, first_order, gauss_newton, maml
from gpu_graph import Captured
from metagrad import CG, GradientDescent, Implicit
from metagrad.data import ImageClasses
from metagrad.fewshot import FOMAML, IMAML, MAML, Algorithm, Batch, Conv4, EpisodeSampler, Tasks, meta_gradient
from peers import by_hand, one_by_one
from workload import Gradient, Workload, gap, taken

FAR = 1e-8  # float64 gradients farther apart than this are not the same quantity
NO_GPU = "no GPU"
MORE = 8  # times the tasks
METAGRAD: dict[str, Contestant] = {
    "exact Hessian": exact_hessian,
    "Gauss-Newton": gauss_newton,
    "MAML": maml,
    "first-order MAML": first_order,
}
PEERS: dict[str, Contestant] = {"by hand": by_hand.gradient, "loop over tasks": one_by_one.gradient}
Drawn = tuple[Conv4, Gradient, Tasks]
Measurement = Callable[[], dict[str, Any]]


def machine(device: str) -> dict[str, Any]:
    """Say on what numbers were measured."""
    found = {
        "metagrad": metagrad.__version__,
        "commit": _commit(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "host": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "device": "cpu",
    }
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(device)
        found |= {
            "device": facts.name,
            "memory_gib": round(facts.total_memory / 2**30, 1),
            "multiprocessors": facts.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _commit() -> str:
    ask = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def reason(error: BaseException) -> str:
    """Say in one line what went wrong."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def workload(asked: argparse.Namespace, **changed: Any) -> Workload:
    """Return what is timed, as the command line has it but for what is ``changed``."""
    names = ("tasks", "ways", "shots", "queries", "filters", "inner_steps", "inner_lr", "lam", "cg_steps")
    return Workload(**{name: getattr(asked, name) for name in names} | changed)


def drawn(work: Workload, dtype: torch.dtype, device: str) -> Drawn:
    """Return network, weights and episodes on the device: the same float32 numbers whatever the device and type."""
    model, theta, tasks = work.draw(work.tasks, torch.float32)
    moved = Tasks(*(Batch(batch.x.to(device, dtype), batch.y.to(device)) for batch in tasks))
    own = {name: leaf.detach().to(device, dtype).requires_grad_() for name, leaf in theta.items()}
    return model.to(device, dtype), own, moved


def wait(device: str) -> None:
    """Wait until the device has done everything."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def timed(fn: Callable[[], object], device: str, deadline: float, repeats: int) -> dict[str, Any]:
    """Return the median time of several calls, after one or two that do not count, and the device's peak memory."""
    cuda = torch.device(device).type == "cuda"
    for _ in range(min(2, repeats)):
        fn()
    wait(device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    times: list[float] = []
    while len(times) < repeats and (not times or time.monotonic() < deadline):
        began = time.perf_counter()
        fn()
        wait(device)
        times.append(time.perf_counter() - began)
    found = {"seconds": statistics.median(times), "least": min(times), "calls": len(times)}
    if cuda:
        found["peak_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return found


def attempt(
    results: Any, part: str, what: str, deadline: float, fn: Callable[[], dict[str, Any]], **facts: Any
) -> None:
    """Record what ``fn`` finds, or why it found nothing; leave it out after the deadline."""
    if time.monotonic() > deadline:
        results.row(part, what, **facts, reason="no time left")
        return
    try:
        found = fn()
    except Exception as error:
        found = {"reason": reason(error)}
    results.row(part, what, **facts, **found)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the next one's memory is its own


def check(asked: argparse.Namespace, results: Any, deadline: float) -> None:
    """Compare meta-gradients on the device with the CPU's, in float64."""
    small = workload(asked, tasks=3, queries=3, filters=min(asked.filters, 8), inner_steps=3, cg_steps=3)
    paper = workload(asked, tasks=2)
    for size, work in (("small", small), *(() if asked.tiny else (("two tasks of full size", paper),))):
        for name, contestant in {**METAGRAD, **PEERS}.items():
            attempt(results, "check", name, deadline, partial(_distance, asked, work, contestant), size=size)


def _distance(asked: argparse.Namespace, work: Workload, contestant: Contestant) -> dict[str, Any]:
    expected = contestant(work, *drawn(work, torch.float64, "cpu"))
    found = contestant(work, *drawn(work, torch.float64, asked.device))
    error = gap({key: leaf.cpu() for key, leaf in found.items()}, expected)
    return {"relative_error": error, "ok": error <= FAR}


def precision(asked: argparse.Namespace, results: Any, deadline: float) -> None:
    """Measure what fewer digits in matrix products do to the meta-gradient, and what they save."""
    work = workload(asked)
    for name, contestant in METAGRAD.items():
        expected = contestant(work, *drawn(work, torch.float64, asked.device))
        for setting, (products, cast) in {
            "float32": ("highest", False),
            "TF32": ("high", False),
            "medium": ("medium", False),
            "bfloat16 autocast": ("highest", True),
        }.items():
            torch.set_float32_matmul_precision(products)
            fn = partial(_inexact, asked, work, contestant, expected, cast, deadline)
            attempt(results, "precision", name, deadline, fn, precision=setting)
            torch.set_float32_matmul_precision("highest")


def _inexact(
    asked: argparse.Namespace, work: Workload, contestant: Contestant, expected: Gradient, cast: bool, deadline: float
) -> dict[str, Any]:
    given = drawn(work, torch.float32, asked.device)
    with torch.autocast(torch.device(asked.device).type, torch.bfloat16, enabled=cast):
        found = {key: leaf.double() for key, leaf in contestant(work, *given).items()}
        times = timed(lambda: contestant(work, *given), asked.device, deadline, asked.repeats)
    return {"relative_error": gap(found, expected), **times}


def clock(asked: argparse.Namespace, results: Any, deadline: float) -> None:
    """Time everybody at the workload's size and at eight times as many tasks, and metagrad over numbers of tasks."""
    torch.backends.cudnn.allow_tf32 = False  # as in matrix products: on equal terms
    count_waits(asked, results, deadline)
    for tasks in (asked.tasks, MORE * asked.tasks):
        for name, contestant in {**METAGRAD, **PEERS}.items():
            slow = contestant is one_by_one.gradient
            if slow and tasks > asked.tasks:  # eight times as long, which needs no measuring
                continue
            repeats = min(3, asked.repeats) if slow else asked.repeats
            fn = partial(_clocked, asked, workload(asked, tasks=tasks), contestant, deadline, repeats)
            attempt(results, "time", name, deadline, fn, tasks=tasks)
    for tasks in (2,) if asked.tiny else (8, 32, 128, 512):
        fn = partial(_clocked, asked, workload(asked, tasks=tasks), gauss_newton, deadline, asked.repeats)
        attempt(results, "time", "sweep, Gauss-Newton", deadline, fn, tasks=tasks)


def _clocked(
    asked: argparse.Namespace, work: Workload, contestant: Contestant, deadline: float, repeats: int
) -> dict[str, Any]:
    given = drawn(work, torch.float32, asked.device)
    found = timed(lambda: contestant(work, *given), asked.device, deadline, repeats)
    return {**found, "tasks_per_second": round(work.tasks / found["seconds"])}


def count_waits(asked: argparse.Namespace, results: Any, deadline: float) -> None:
    """Count where one meta-gradient, and one draw of tasks, make the host wait for the GPU."""
    work = workload(asked)
    for name, method in methods(asked).items():
        attempt(results, "time", f"host waits, {name}", deadline, lambda method=method: _waits_of(asked, work, method))

    def draw() -> dict[str, Any]:
        images = torch.zeros(40 * asked.ways, 1, 28, 28, dtype=torch.uint8)
        names = tuple(str(k) for k in range(2 * asked.ways))
        classes = ImageClasses(images, torch.full((len(names),), 20), names).to(asked.device)
        sampler = EpisodeSampler(classes=classes, ways=asked.ways, shots=1, queries=2, rotations=True)
        generator = torch.Generator(asked.device).manual_seed(0)
        return _waits(asked.device, lambda: sampler(4, generator=generator))

    attempt(results, "time", "host waits, draw of tasks", deadline, draw)


def _waits_of(asked: argparse.Namespace, work: Workload, method: Algorithm) -> dict[str, Any]:
    model, _, tasks = drawn(work, torch.float32, asked.device)
    theta = method.init(model)
    # One thread: a wait in a backward is then reported from where it is.
    with torch.autograd.set_multithreading_enabled(False):
        return _waits(asked.device, lambda: meta_gradient(method, model, theta, tasks))


def _waits(device: str, fn: Callable[[], object]) -> dict[str, Any]:
    if torch.device(device).type != "cuda":
        return {"reason": NO_GPU}
    fn()
    wait(device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fn()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    places = collections.Counter(f"{Path(one.filename).name}:{one.lineno}" for one in found)
    return {"waits": len(found), "places": dict(places.most_common(10))}


def methods(asked: argparse.Namespace) -> dict[str, Algorithm]:
    """Return the methods as a user has them."""
    steps = {"inner_lr": asked.inner_lr, "inner_steps": asked.inner_steps}
    solver = GradientDescent(lr=asked.inner_lr, max_steps=asked.inner_steps)
    products = CG(max_steps=asked.cg_steps)
    return {
        "Gauss-Newton": IMAML(
            lam=asked.lam, solver=solver, adjoint=Implicit(linear_solver=products, curvature="gauss_newton")
        ),
        "exact Hessian": IMAML(lam=asked.lam, solver=solver, adjoint=Implicit(linear_solver=products)),
        "MAML": MAML(**steps),
        "first-order MAML": FOMAML(**steps),
    }


def graph(asked: argparse.Namespace, results: Any, deadline: float) -> None:
    """Capture meta-gradients in CUDA graphs; compare with launching them, on other tasks and weights."""
    for tasks in (asked.tasks, MORE * asked.tasks):
        for name, method in methods(asked).items():
            fn = partial(_captured, asked, workload(asked, tasks=tasks), method, deadline)
            attempt(results, "graph", name, deadline, fn, tasks=tasks)


def _captured(asked: argparse.Namespace, work: Workload, method: Algorithm, deadline: float) -> dict[str, Any]:
    if torch.device(asked.device).type != "cuda":
        return {"reason": NO_GPU}
    model, _, tasks = drawn(work, torch.float32, asked.device)
    theta = method.init(model)

    def launch() -> Gradient:
        meta_gradient(method, model, theta, tasks)
        return taken(theta)

    launched = timed(launch, asked.device, deadline, asked.repeats)
    began = time.perf_counter()
    replay = Captured(method, model, theta, tasks)
    wait(asked.device)
    capturing = time.perf_counter() - began
    with torch.no_grad():
        for leaf in theta.values():
            leaf.mul_(1.01)
    other = Tasks(*(Batch(batch.x.flip(0), batch.y) for batch in tasks))
    replay(other)
    found = {name: leaf.clone() for name, leaf in taken(theta).items()}
    meta_gradient(method, model, theta, other)
    error = gap(found, taken(theta))
    replayed = timed(lambda: replay(other), asked.device, deadline, asked.repeats)
    return {**replayed, "launched": launched["seconds"], "capture_seconds": capturing, "relative_error": error}


def profile(asked: argparse.Namespace, results: Any, deadline: float) -> None:
    """Write the operations by their time to OUT/profile.txt and count kernels."""
    path = Path(asked.out) / "profile.txt"
    path.write_text("", encoding="utf-8")
    for name in ("Gauss-Newton",) if asked.tiny else ("Gauss-Newton", "exact Hessian", "MAML"):
        attempt(results, "profile", name, deadline, partial(_profiled, asked, name, path))


def _profiled(asked: argparse.Namespace, name: str, path: Path) -> dict[str, Any]:
    work, cuda = workload(asked), torch.device(asked.device).type == "cuda"
    given = drawn(work, torch.float32, asked.device)
    METAGRAD[name](work, *given)
    wait(asked.device)
    with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        METAGRAD[name](work, *given)
        wait(asked.device)
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = seen.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=90)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{name}, {work}\n{table}\n\n")
    if not cuda:
        return {"kernels": NO_GPU}
    on_device = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    copies = [event for event in on_device if event.name.startswith(("Memcpy", "Memset"))]
    busy = sum(event.time_range.elapsed_us() for event in on_device) / 1e6
    return {"kernels": len(on_device) - len(copies), "copies": len(copies), "device_seconds": busy}


PARTS = {"check": check, "precision": precision, "time": clock, "graph": graph, "profile": profile}
