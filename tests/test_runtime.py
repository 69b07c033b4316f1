"""Random streams are independent and repeatable; what was set for the inside is as before on the outside."""

import builtins
import itertools
import sys

import numpy as np
import pytest
import torch

from helpers import runtime
from helpers.runtime import deterministic, generator, numpy_generator, seeded, stream


def test_a_stream_is_a_function_of_its_seed_and_names():
    assert stream(0, "order", 3) == stream(0, "order", 3)
    asked = [stream(*names) for names in [(0,), (0, "order"), (0, "order", 3), (0, "order", 4), (1, "order", 3),
                                          (0, "init"), (0, 3, "order"), (0, "order/3", "x")]]  # fmt: skip
    assert len(set(asked)) == len(asked)
    assert all(0 <= seed < 2**63 for seed in asked)
    assert stream(0, "order", 3) == 2723741169552378311, "and the same on every platform and in every version"


def test_streams_do_not_depend_on_the_order_in_which_they_are_asked_for():
    names = ["init", "order", "masks"]
    for order in itertools.permutations(names):
        drawn = {name: torch.rand(3, generator=generator(7, name)).tolist() for name in order}
        assert drawn == {name: torch.rand(3, generator=generator(7, name)).tolist() for name in names}


def test_streams_are_independent():
    draws = np.stack([torch.rand(4000, generator=generator(seed, name)).numpy() for seed in (0, 1) for name in "ab"])
    correlations = np.corrcoef(draws)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 0.06  # 4 standard deviations


def test_numpys_stream_repeats_too():
    assert np.array_equal(numpy_generator(3, "x").random(5), numpy_generator(3, "x").random(5))
    assert not np.array_equal(numpy_generator(3, "x").random(5), numpy_generator(3, "y").random(5))


def test_seeded_gives_the_named_stream_inside_and_restores_what_was():
    torch.manual_seed(123)
    expected_outside = torch.rand(6)
    torch.manual_seed(123)
    first = torch.rand(3)
    with seeded(5, "init"):
        inside = torch.rand(4)
    assert torch.equal(torch.cat([first, torch.rand(3)]), expected_outside)
    with seeded(5, "init"):
        assert torch.equal(torch.rand(4), inside)
    with seeded(5, "dropout"):
        assert not torch.equal(torch.rand(4), inside)


def test_seeded_restores_after_an_error():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(5, "init"):
        torch.rand(4)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("before", [(False, False), (True, True), (True, False)])
def test_deterministic_holds_inside_and_restores_what_was(before):
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    cudnn = torch.backends.cudnn
    try:
        outside = cudnn.deterministic, cudnn.benchmark
        with pytest.raises(KeyError), deterministic():
            assert torch.are_deterministic_algorithms_enabled() and cudnn.deterministic and not cudnn.benchmark
            raise KeyError
        assert torch.are_deterministic_algorithms_enabled() == before[0]
        if before[0]:
            assert torch.is_deterministic_algorithms_warn_only_enabled() == before[1]
        assert (cudnn.deterministic, cudnn.benchmark) == outside
        with deterministic(False):
            assert not torch.are_deterministic_algorithms_enabled()
        with deterministic(strict=True), deterministic():
            assert not torch.is_deterministic_algorithms_warn_only_enabled(), "what a strict one holds is strict"
    finally:
        torch.use_deterministic_algorithms(False)


# ----------------------------------------------------------------------------------------------- hardware


@pytest.fixture
def hardware(monkeypatch):
    def pretend(cuda, mps):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_the_fastest_device_there_is(hardware, cuda, mps, best):
    hardware(cuda, mps)
    assert runtime.device() == runtime.device("auto") == torch.device(best)
    assert runtime.device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(hardware, name):
    hardware(False, False)
    with pytest.raises(RuntimeError, match=f"DEVICE='{name}' is not available here; there are: cpu$"):
        runtime.device(name)


def test_the_fast_type_is_what_the_hardware_multiplies_faster(monkeypatch):
    for there, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda there=there: there)
        assert runtime.fast_dtype(torch.device("cpu")) == dtype
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda there=there: there)
        assert runtime.fast_dtype(torch.device("cuda")) == dtype
    assert runtime.fast_dtype(torch.device("mps")) == torch.float32


def test_the_environment_names_versions_and_hardware():
    report = runtime.environment()
    assert report["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert report["numpy"] == np.__version__ and "device" in report and "python" in report
    assert all(isinstance(value, str) for value in report.values())


def test_a_package_that_is_missing_is_reported_as_such(monkeypatch):
    def version(package):
        raise runtime.importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(runtime.importlib.metadata, "version", version)
    assert runtime.environment()["quantus"] == "not installed"


@pytest.mark.parametrize("error", [RuntimeError("operator torchvision::nms does not exist"), ImportError("no module"),
                                   AttributeError("partially initialized module")])  # fmt: skip
def test_a_torchvision_that_does_not_fit_is_explained(monkeypatch, error):
    """The CPU-only torch 2.13.0 breaks torchvision at import."""
    real = builtins.__import__

    def broken(name, *arguments):
        if name == "torchvision":
            raise error
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ImportError) as caught:
        runtime.import_torchvision()
    message = str(caught.value)
    assert torch.__version__ in message and str(error) in message
    assert "pip install torch==" in message and "torchvision==" in message


def test_the_torchvision_that_is_installed_fits():
    assert runtime.import_torchvision().__name__ == "torchvision"


def test_a_torchvision_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(runtime.TorchvisionError, match="^torchvision is not installed: `pip install torchvision`$"):
        runtime.import_torchvision()
