"""Every metric with its direction, and one call that scores any explainers by any of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers.attribution.base import aimed
from helpers.attribution.controls import constant_map, random_map
from helpers.config import ConfigError, suggest
from helpers.metrics import faithfulness, imputation, localisation, randomisation, stability
from helpers.metrics.base import BATCH, Explain, explained
from helpers.metrics.complexity import entropy, sparseness

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Metric:
    """``function`` takes what it needs of (explain, model, x, target, heat, masks) and returns one value an image, or
    several sets of them, of which ``field`` is meant. ``better`` says which values are."""

    function: Callable[..., Any]
    better: Literal["higher", "lower"]
    source: str
    field: str = ""


METRICS: dict[str, Metric] = {
    **{
        f"lipschitz_{scale}": Metric(stability.lipschitz, "lower", "arXiv 1806.08049", scale)
        for scale in stability.Lipschitz._fields
    },
    "max_sensitivity": Metric(stability.sensitivity, "lower", "arXiv 1901.09392", "maximum"),
    "avg_sensitivity": Metric(stability.sensitivity, "lower", "arXiv 1901.09392", "average"),
    **{
        f"relative_{part}_stability": Metric(stability.relative_stability, "lower", "arXiv 2203.06877", part)
        for part in stability.RelativeStability._fields
    },
    "irof": Metric(faithfulness.irof, "higher", "arXiv 2003.08747", "aoc"),
    "pixel_flipping": Metric(faithfulness.pixel_flipping, "lower", "doi 10.1371/journal.pone.0130140", "auc"),
    "selectivity": Metric(faithfulness.selectivity, "lower", "arXiv 1706.07979", "auc"),
    "faithfulness_correlation": Metric(faithfulness.faithfulness_correlation, "higher", "arXiv 2005.00631"),
    "infidelity": Metric(faithfulness.infidelity, "lower", "arXiv 1901.09392"),
    "road": Metric(imputation.road, "lower", "arXiv 2202.00449", "score"),
    "sparseness": Metric(sparseness, "higher", "arXiv 1810.06583"),
    "complexity": Metric(entropy, "lower", "arXiv 2005.00631"),
    "mprt_last": Metric(randomisation.mprt, "lower", "arXiv 1810.03292", "last"),
    "mprt_average": Metric(randomisation.mprt, "lower", "arXiv 1810.03292", "average"),
    "efficient_mprt": Metric(randomisation.efficient_mprt, "higher", "arXiv 2401.06465"),
    "pointing_game": Metric(localisation.pointing_game, "higher", "arXiv 1608.00507"),
    "relevance_mass": Metric(localisation.relevance_mass, "higher", "arXiv 2003.07258"),
}
"""Names as in the column ``metric`` of `compare`."""

CONTROLS: dict[str, Explain] = {"constant_map": constant_map, "random_map": random_map}
"""What does not beat them has found nothing; a constant map is perfectly stable all the same."""


def compare(
    explainers: Mapping[str, Explain],
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    *,
    metrics: Iterable[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    masks: Tensor | None = None,
    controls: bool = True,
    seed: int = 0,
    batch: int = BATCH,
    progress: str | None = None,
) -> DataFrame:
    """Every explainer, and the `CONTROLS` unless ``controls`` is off, by every metric: one row a value, with the
    columns method, metric, image (the place in x [B, C, H, W]) and value.

    ``metrics`` are names of `METRICS`, all that can be had if not given: the localisation metrics need ``masks``
    [B, H, W]. ``options`` are by function: ``{"lipschitz": {"draws": 20}, "irof": {"baseline": 0.0}}``; ``seed`` and
    ``batch`` go to all. Superpixels are cut once, and what one function gives for several metrics is computed once.
    Raises `ConfigError` for names that do not exist, ``ValueError`` for targets that are not one an image.
    """
    from pandas import DataFrame

    needs_masks = [name for name, metric in METRICS.items() if "masks" in _names(metric.function)]
    if metrics is None:
        metrics = [name for name in METRICS if masks is not None or name not in needs_masks]
    metrics, options = list(metrics), _checked_options(options or {})
    functions: dict[Callable[..., Any], list[str]] = {}  # one call for all that it gives
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}: {suggest(name, METRICS)}")
        if masks is None and name in needs_masks:
            raise ConfigError(f"{name} needs masks of where the target is")
        functions.setdefault(METRICS[name].function, []).append(name)

    shared = {"model": model, "x": x, "target": aimed(x, target), "masks": masks, "seed": seed, "batch": batch}
    if "irof" in metrics and "segments" not in options.get("irof", {}):
        shared["segments"] = faithfulness.superpixels(x)
    methods = {**explainers, **(CONTROLS if controls else {})}
    rows = []
    bar = tqdm(total=len(methods) * len(functions), desc=progress, disable=progress is None, leave=False)
    for method, explain in methods.items():
        given = {**shared, "explain": explain, "heat": explained(explain, model, x, target, batch=batch)}
        for function, names in functions.items():
            bar.set_postfix_str(f"{method}, {function.__name__}")
            known = {name: value for name, value in given.items() if name in _names(function)}
            result = function(**{**known, **options.get(function.__name__, {})})
            for name in names:
                values = getattr(result, METRICS[name].field) if METRICS[name].field else result
                rows += [(method, name, image, value) for image, value in enumerate(values.tolist())]
            bar.update()
    bar.close()
    return DataFrame(rows, columns=["method", "metric", "image", "value"])


def _names(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def _checked_options(options: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    functions = {metric.function.__name__: metric.function for metric in METRICS.values()}
    for name, chosen in options.items():
        if name not in functions:
            raise ConfigError(f"options for an unknown function {name!r}: {suggest(name, functions)}")
        known = [n for n, p in _names(functions[name]).items() if p.kind is p.KEYWORD_ONLY]
        for option in chosen:
            if option not in known:
                raise ConfigError(
                    f"{name} has no option {option!r}: {suggest(option, known) if known else 'it takes none'}"
                )
    return options
