"""A shelf of networks that were never trained, with true records: everything but the training, in seconds."""

from helpers import artifacts, runtime
from helpers.pinets import fits, study
from helpers.pinets.fits import Fit
from helpers.pinets.presets import ToyShapesStudy

TINY = {  # 3 x 3 cells of 12 pixels
    "fits": 2,
    "ensembles": 1,
    "members": 2,
    "test_images": 24,
    "data.n_images": 40,
    "data.n_blocks": 9,
    "data.block_size": 12,
    "data.relative_frequency": 2.0,
}


def untrained(folder, settings=TINY):
    """(study, shelf) with ``settings.fits`` fits of each single group and an ensemble."""
    options = ToyShapesStudy().override(settings)
    shelf = study.Shelf(folder)
    for group in options.groups:
        if getattr(options.group, group).ensemble:
            members = [Fit(group, seed, 0) for seed in range(options.members)]
            for member in members:
                _keep_weights(member, options, folder)
            records = [study.evaluate_ensemble(group, 0, options, shelf)]
        else:
            singles = [Fit(group, seed) for seed in range(options.fits)]
            for fit in singles:
                _keep_weights(fit, options, folder)
            records = [study.evaluate_fit(fit, options, shelf) for fit in singles]
        for record in records:
            artifacts.save_json(shelf.record_path(record["fit"]), record)
    return options, shelf


def _keep_weights(fit, options, folder):
    group = fit.settings(options)
    with runtime.seeded(fit.seed, fit.group, "init"):
        model = fits.build(group.model, options.data.image_size)
    metadata = {
        "fit": fit.name,
        "settings": fit.digest(options),
        "group": group.model_dump(mode="json"),
        "accepted": True,
        "validation_accuracy": 0.0,
        "epochs": 0,
        "seconds": 0.0,
    }
    artifacts.save_tensors(fits.weights_path(folder, fit), artifacts.half_precision(model.state_dict()), metadata)
