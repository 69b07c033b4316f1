"""A computation on CUDA as one graph of kernels: what is bound by launches runs as fast as its kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 3  # runs before the recording, in which libraries choose their kernels

log = logging.getLogger(__name__)

Outputs = tuple[Tensor, ...]


def captured(run: Callable[[], Outputs], inputs: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Outputs]:
    """``replay(values)``: what ``run()`` returns when its ``inputs`` hold the ``values``, of the same shapes.

    ``run`` reads ``inputs`` in place, and whatever else it reads (weights, images) where it lies now; all of it has to
    stay there. It must wait for nothing on the device. What is returned is overwritten by the next replay. Without
    CUDA the replay is ``run`` itself; so it is, with a warning, where CUDA refuses to record.
    """
    graph, outputs = _record(run) if inputs[0].is_cuda else (None, ())

    def replay(values: Sequence[Tensor]) -> Outputs:
        with torch.no_grad():
            for held, value in zip(inputs, values, strict=True):
                held.copy_(value)
        if graph is None:
            return run()
        graph.replay()
        return outputs

    return replay


def _record(run: Callable[[], Outputs]) -> tuple[torch.cuda.CUDAGraph | None, Outputs]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            return graph, run()
    except RuntimeError as error:
        log.warning("no CUDA graph of the critic's pass, which will be slower: %s", error)
        return None, ()
