"""The tables of the ToyShapes notebook, as data frames."""

from __future__ import annotations

import pandas as pd
from scipy.stats import mannwhitneyu

from helpers.figures import Note
from helpers.ledger import agree
from helpers.pinets import released
from helpers.pinets.evaluate import LEVELS
from helpers.pinets.fits import build
from helpers.pinets.presets import LABELS, ToyShapesStudy

METRICS = ("accuracy", "naive_score", "optimal_score", "recursive", "shift")
RATES = ("optimal_tdr", "optimal_tar")
FEWEST = 3  # fits, where two sets of them are compared


def architectures(study: ToyShapesStudy) -> pd.DataFrame:
    """Each group's network and what sets its training apart."""
    rows = {}
    for name in study.groups:
        group = getattr(study.group, name)
        network = build(group.model, study.data.image_size)
        extras = {"feedback": group.training.feedback, "masks": group.training.strong}
        rows[group.label] = {
            "network": type(network).__name__,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "second look": "" if group.model.kind == "cnn" else group.model.second_look,
            "learning rate": group.training.learning_rate,
            "extra loss": ", ".join(f"{weight:g} × {term}" for term, weight in extras.items() if weight),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def medians(table: pd.DataFrame) -> pd.DataFrame:
    """Medians over the accepted fits of each group, with the released ones in brackets."""
    rows = {}
    for group, fits in _accepted(table):
        row = {"fits": str(len(fits))}
        references = {metric: value[0] for metric, value in released.TABLE[group].items()}
        references |= dict(zip(RATES, released.OPTIMAL_RATES[group], strict=True))
        for metric in (*METRICS[:3], *RATES, *METRICS[3:]):
            row[metric] = f"{fits[metric].median():.3f}"
            row[metric] += f" ({references[metric]:.3f})" if metric in references else ""
        rows[group] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("ours (released)")


def spreads(table: pd.DataFrame) -> pd.DataFrame:
    """Standard deviations over the accepted fits of each group, with the released ones in brackets; of an ensemble's
    recursive accuracy under the released rule of voting."""
    rows = {}
    for group, fits in _accepted(table):
        columns = {metric: released.column(group, metric) for metric in ("naive_score", "optimal_score", "recursive")}
        rows[group] = {"fits": str(len(fits))} | {
            metric: f"{fits[column].std():.3f} ({released.TABLE[group][column][2]:.3f})"
            for metric, column in columns.items()
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("ours (released)")


def differences(table: pd.DataFrame) -> pd.DataFrame | Note:
    """The medians that differ from the released ones by `released.RULE`, with all the fits behind them: median (lowest
    to highest), and how many of ours lie above the released median and outside the released range."""
    rows = {}
    for group, fits in _accepted(table):
        for metric, (low, high) in released.RANGES[group].items():
            median, values = released.TABLE[group][metric][0], fits[metric]
            tolerance = released.tolerance(group, metric)
            if len(fits) >= released.MIN_FITS and not agree(values.median(), median, tolerance):
                outside = int((~values.round(3).between(low, high)).sum())
                rows[f"{LABELS[group]}: {metric}"] = {
                    "ours": f"{values.median():.3f} ({values.min():.3f} to {values.max():.3f})",
                    "released": f"{median:.3f} ({low:.3f} to {high:.3f})",
                    "tolerance": f"± {tolerance:.3f}",
                    "above its median": f"{(values > median).sum()} of {len(fits)}",
                    "outside its range": f"{outside} of {len(fits)}",
                }
    if not rows:
        return Note(f"No median of {released.MIN_FITS} fits or more differs.")
    return pd.DataFrame.from_dict(rows, orient="index")


def precisions(control: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame | Note:
    """Medians of the accepted single fits in bfloat16 (of ``control``) | in float32 (of ``table``), and the p of Mann
    and Whitney's two-sided test that they come from one distribution; of groups with `FEWEST` or more of each."""
    rows, known = {}, dict(iter(_accepted(control)))
    for group, fits in _accepted(table[table.group.isin(known) & (table.group != "ensemble")]):
        low, full = known[group], fits[fits.precision == "32-true"]
        if min(len(low), len(full)) >= FEWEST:
            rows[group] = {"fits": f"{len(low)} | {len(full)}"} | {
                metric: f"{low[metric].median():.3f} | {full[metric].median():.3f} "
                f"(p = {mannwhitneyu(low[metric], full[metric]).pvalue:.3f})"
                for metric in METRICS
            }
    if not rows:
        return Note(f"No precisions to compare: no group has {FEWEST} fits or more of each.")
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("bfloat16 | float32")


def price_of_validation(table: pd.DataFrame) -> pd.DataFrame:
    """Median score with the oracle's threshold and with one chosen on validation masks, and the median difference."""
    rows = {}
    for group, fits in _accepted(table):
        lost = fits.optimal_score - fits.validated_score
        rows[group] = {
            "oracle": fits.optimal_score.median(),
            "validated": fits.validated_score.median(),
            "lost": lost.median(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(3)


def detection_ranges(table: pd.DataFrame) -> pd.DataFrame:
    """For each level: the share of fits that reach it and the median length of the range in decades (released)."""
    rows = {}
    for group, fits in _accepted(table):
        row = {}
        for level, (reached, length) in zip(LEVELS, released.DETECTION_RANGE[group], strict=True):
            ranges = fits[f"range_{level}"]
            row[f"reach {level}"] = f"{(fits.optimal_score > level).mean():.0%} ({reached / released.FITS:.0%})"
            row[f"decades {level}"] = f"{ranges.median():.2f} ({length:.2f})"
        rows[group] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("ours (released)")


def unstretched(fits: pd.DataFrame) -> pd.DataFrame | Note:
    """Medians of `recursion.unstretched`, and how many fits answer "no" to the unstretched part of every image."""
    rows = {}
    for group, some in fits.groupby("group", sort=False):
        rows[group] = {
            "fits": len(some),
            "highest π": some.peak.median(),
            "accuracy": some.accuracy.median(),
            "stretched to 1": some.stretched.median(),
            "as it is": some.unstretched.median(),
            "π left": some.left.median(),
            'always "no"': int((some.positives == 0).sum()),
        }
    if not rows:
        return Note("No unstretched maps: neither PiNet nor PiNet Feedback is among GROUPS with the weights of a fit.")
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def ensemble_rules(table: pd.DataFrame) -> pd.DataFrame | Note:
    """Accuracy of the ensembles on the marked part alone, by three rules of voting."""
    ensembles = table[table.group == "ensemble"]
    columns = {
        "recursive": "mean logit (ours)",
        "majority_recursive": "majority",
        "legacy_recursive": "OR (released rule)",
    }
    if ensembles.empty:
        return Note("No rules of voting to compare: there is no ensemble among GROUPS.")
    return ensembles[list(columns)].rename(columns=columns).agg(["median", "min", "max"]).round(3)


def _accepted(table: pd.DataFrame):
    return table[table.accepted].groupby("group", sort=False)
