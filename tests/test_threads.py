"""Threads that share a network, a classifier or theta change no result."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_torch_modes import CONV4, DRAWINGS, LABELS, TASKS, Own, drawn, gradient, learner
from torch import nn
from toyruns import toy

from metagrad.fewshot import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    Conv4,
    MemoryReduced,
    admit,
    evaluate,
    meta_gradient,
    module_lock,
)
from metagrad.fewshot.frozen import frozen_parts
from metagrad.fewshot.layers import frozen_first, layers_of


@pytest.mark.parametrize("kind", ["own", "conv4", "frozen"])
def test_four_threads_share_one_network(kind):
    """Each gets what it gets alone, and the network is afterwards what it was."""
    model = admit(Own(), torch.rand(4, 1, 14, 14)) if kind != "conv4" else Conv4(3, filters=4, image_size=14)
    model = model.double()
    if kind == "frozen":
        model.body.weight.requires_grad_(False)
    before = [leaf.clone() for leaf in model.parameters()]
    g = torch.Generator().manual_seed(2)
    methods = [IMAML(), MAML(inner_steps=2), ANIL(), MemoryReduced(), BOIL(), ANIL(features="recomputed")]
    jobs = []
    for method in methods:
        theta = {
            name: (leaf + 0.1 * torch.randn(leaf.shape, generator=g, dtype=leaf.dtype)).detach().requires_grad_()
            for name, leaf in method.init(model).items()
        }
        jobs.append((method, theta, drawn(2, g, torch.float64)))

    def work(job):
        method, theta, tasks = job
        own = {name: leaf.detach().clone().requires_grad_() for name, leaf in theta.items()}
        return gradient(method, model, own, tasks)

    alone = [work(job) for job in jobs]
    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(work, jobs * 2))
    finally:
        sys.setswitchinterval(often)
    for found, expected in zip(together, alone * 2, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for now, then in zip(model.parameters(), before, strict=True):
        assert torch.equal(now, then)


def test_four_threads_evaluate_and_judge_with_one_network():
    model = admit(Own(), torch.rand(4, 1, 14, 14)).double()
    classifier = learner().adapt(DRAWINGS, LABELS)
    theta = IMAML().init(model)
    tasks = drawn(40, torch.Generator().manual_seed(3), torch.float64)

    class Given:
        """Hands out tasks that were drawn before, and says where its images are."""

        classes = toy().val

        def __call__(self, count, *, generator):
            return tasks.part(0, count)

    def work(number):
        if number % 2:
            return torch.cat([part.flatten() for part in classifier.classify(DRAWINGS[number:])])
        found = evaluate(IMAML(), model, theta, Given(), tasks=8 + number, generator=torch.Generator())
        return torch.tensor([found.accuracy, found.loss])

    alone = [work(number) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(work, range(8)), alone, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_threads_that_share_theta_lose_no_gradient():
    theta = FOMAML().init(CONV4)
    expected = 8 * gradient(FOMAML(inner_steps=1), CONV4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: meta_gradient(FOMAML(inner_steps=1), CONV4, theta, TASKS), range(8)))
    torch.testing.assert_close(torch.cat([leaf.grad.flatten() for leaf in theta.values()]), expected)


def test_weights_of_another_threads_forward_pass_are_not_taken_for_frozen():
    began, over = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            began.set()
            over.wait(10)
            return self.head(x)

    model = Slow()
    detached = {name: leaf.detach() for name, leaf in model.named_parameters()}
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(module_lock.call, model, detached, torch.rand(3, 4))
        assert began.wait(10)
        counted = pool.submit(frozen_first, layers_of(model.head))
        threading.Timer(0.2, over.set).start()
        assert counted.result(10) == 0
        running.result(10)
    model.head.weight.requires_grad_(False)
    began.clear()
    over.clear()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(module_lock.call, model, detached, torch.rand(3, 4))
        assert began.wait(10)
        found = pool.submit(frozen_parts, model)
        threading.Timer(0.2, over.set).start()
        assert found.result(10) == []
        running.result(10)
