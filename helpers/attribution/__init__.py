"""Post-hoc heat maps, one signature for all: ``explain(model, x[B, C, H, W], target[B]) -> heat[B, H, W]``.

    explain = explainer("grad_cam", layer="encoder")  # or functools.partial(grad_cam, layer="encoder")
    heat = explain(model, x, target)

Every method explains one logit per image, that of the class ``target``; a model of one logit ignores the
target (None will do). It runs the model in eval mode and leaves it as found, also after an error: modes,
weights, gradients, hooks. A map does not depend on the batch mates: random draws are shared by all images,
and come from ``seed`` without touching torch's global generators. The heat is finite and detached.

Raises `ConfigError` for a misspelt method, option or layer; ``ValueError`` for an empty batch, wrong shapes,
a target that is no class, logits or heat that are not finite, and a model that the method is not made for.

Captum computes `integrated_gradients`, `occlusion` and `lime` (imported there: it takes a second). The others stand
here, with Captum as a reference in the tests. Its guided backpropagation, deconvolution, DeepLIFT and LRP
see modules only: functional ReLUs, means and sums make wrong maps without a word, as does max pooling in
DeepLIFT. Its SmoothGrad, GradientSHAP and KernelSHAP draw from the global generators. It has no RISE.

Excitation backpropagation (arXiv 1608.00507) and extremal perturbation are not here: their library, TorchRay, is
unmaintained. The first is `lrp` with a large ``gamma``, as far as convolutions of positive inputs go.
"""

from helpers.attribution.base import METHODS, collapse, explainer
from helpers.attribution.controls import constant_map, random_map
from helpers.attribution.gradients import (
    grad_cam,
    gradient,
    gradient_shap,
    input_x_gradient,
    integrated_gradients,
    smooth_grad,
)
from helpers.attribution.perturbations import kernel_shap, lime, occlusion, rise
from helpers.attribution.rules import deconvolution, deep_lift, guided_backprop, lrp

__all__ = [
    "METHODS", "collapse", "constant_map", "deconvolution", "deep_lift", "explainer", "grad_cam", "gradient",
    "gradient_shap", "guided_backprop", "input_x_gradient", "integrated_gradients", "kernel_shap", "lime", "lrp",
    "occlusion", "random_map", "rise", "smooth_grad",
]  # fmt: skip
