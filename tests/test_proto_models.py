"""Prototype networks compute what the spec says, from distances to losses, and say what they cannot be."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import artifacts, runtime
from helpers.config import ConfigError, parse
from helpers.prototypes import info, losses, models, presets
from helpers.prototypes.models import Classifier, LinearHead, ProtoNet, add_on_layers, classes_of
from helpers.prototypes.similarity import distances, similarity

CLASSES, EACH, DIM = 3, 2, 5
HEADS = ("proto", "sparse", "linear")
every_head = pytest.mark.parametrize("head", HEADS)
every_distance = pytest.mark.parametrize("kind", ("cosine", "l2"))


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def draws(*names):
    return runtime.generator(0, "proto", *names)


def settings(**changes):
    small = {"num_prototypes": CLASSES * EACH, "prototype_dim": DIM}
    return parse(presets.Model, small | changes)


def small_features():
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())


def net(seed=0, **changes):
    with runtime.seeded(seed, "net"):
        return ProtoNet(small_features(), 8, CLASSES, settings(**changes)).eval()


def images(n=4, size=11):
    return torch.randn(n, 3, size, size, generator=draws("x"))


def shuffled_head(model):
    """``model`` with weights that no initialisation gives its head."""
    for parameter in model.head.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draws("head")))
    return model


def refusal(call, *args, **kwargs):
    with pytest.raises(ConfigError) as refused:
        call(*args, **kwargs)
    return str(refused.value)


# -------------------------------------------------------------------------------------- distances, similarities


def features_and_prototypes(signed=True):
    z, p = torch.rand(2, 5, 3, 4, generator=draws("z")), torch.rand(7, 5, generator=draws("p"))
    return (z - 0.5, p - 0.5) if signed else (z, p)


def slow_distance(z, p, kind):
    found = torch.zeros(len(z), len(p), *z.shape[2:])
    for b, j, y, x in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        cell = z[b, :, y, x]
        if kind == "l2":
            found[b, j, y, x] = sum((cell - p[j]) ** 2)
        else:
            found[b, j, y, x] = 1 - sum(cell * p[j]) / (sum(cell**2).sqrt() * sum(p[j] ** 2).sqrt())
    return found


@every_distance
def test_distances_are_the_formulas(kind):
    """Property 9."""
    z, p = features_and_prototypes()
    found = distances(z, p, kind)
    assert found.shape == (2, 7, 3, 4) and found.dtype == torch.float32
    assert torch.allclose(found, slow_distance(z, p, kind), atol=1e-6)


def test_cosine_distances_know_no_length_and_reach_from_0_to_2():
    """Property 9."""
    z, p = features_and_prototypes()
    assert torch.allclose(distances(3e4 * z, 2e-5 * p, "cosine"), distances(z, p, "cosine"), atol=1e-6)
    ends = distances(torch.cat([z, -z]), z.permute(0, 2, 3, 1).reshape(-1, 5), "cosine")
    assert 0 <= ends.min() < 1e-6 and 2 - 1e-6 < ends.max() <= 2


@every_distance
def test_the_distance_of_a_cell_to_itself_is_nothing_but_rounding(kind):
    z = torch.rand(2, 192, 3, 4, generator=draws("wide"))
    found = distances(z, z.permute(0, 2, 3, 1).reshape(-1, 192), kind)
    own = found.permute(0, 2, 3, 1).reshape(24, 24).diagonal()
    squares = z.square().sum(1).mean()
    assert own.min() >= 0 and own.max() < (5e-7 if kind == "cosine" else 1e-6 * squares)


@every_distance
@pytest.mark.parametrize("activation", ("log", "linear"))
def test_gradients_are_finite_at_distance_zero_and_for_zero_vectors(kind, activation):
    """Property 8."""
    z, p = features_and_prototypes()
    z[0, :, 0, 0], p[0], p[1] = 0, 0, z[1, :, 2, 2]
    z, p = z.requires_grad_(), p.requires_grad_()
    distance = distances(z, p, kind)
    found = similarity(distance, activation, kind, 1e-6)
    found.sum().backward()
    for value in (distance, found, z.grad, p.grad):
        assert value.isfinite().all()
    if kind == "cosine":
        assert (distance[0, :, 0, 0] == 1).all() and (distance[:, 0] == 1).all()
        assert (z.grad[0, :, 0, 0] == 0).all() and (p.grad[0] == 0).all()


@every_distance
def test_gradients_are_those_of_the_slow_formula(kind):
    grads = []
    for way in (distances, slow_distance):
        z, p = (value.clone().requires_grad_() for value in features_and_prototypes())
        way(z, p, kind).square().sum().backward()
        grads.append((z.grad, p.grad))
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_log_similarity_has_the_published_values_and_falls():
    """Property 8."""
    d = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    s = similarity(d, "log", "cosine", 1e-6)
    assert s.tolist() == pytest.approx([13.8155, 0.69315, 0.40547], abs=1e-4)
    (slope,) = torch.autograd.grad(s.sum(), d)
    assert slope.tolist() == pytest.approx([-1e6, -0.5, -1 / 6], rel=1e-4)
    grid = torch.logspace(-9, 1, 200)
    assert (similarity(grid, "log", "l2", 1e-6).diff() < 0).all()


def test_linear_similarities_are_one_minus_the_cosine_distance_and_minus_the_squared_one():
    d = torch.tensor([0.0, 0.3, 2.0])
    assert torch.equal(similarity(d, "linear", "cosine", 1e-6), 1 - d)
    assert torch.equal(similarity(d, "linear", "l2", 1e-6), -d)


@every_distance
def test_distances_keep_their_digits_under_autocast(kind):
    z, p = features_and_prototypes(signed=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = distances(z, p, kind)
        assert torch.equal(similarity(found, "log", kind, 1e-6), similarity(distances(z, p, kind), "log", kind, 1e-6))
    assert found.dtype == torch.float32 and torch.equal(found, distances(z, p, kind))


# ----------------------------------------------------------------------------------------------------- network


@every_distance
def test_an_output_holds_the_best_cell_of_every_prototype(kind):
    model = net(distance=kind)
    x = images()
    output, z = model(x), model.embed(x)
    assert torch.allclose(output.distances, slow_distance(z, model.prototypes.flatten(1), kind), atol=1e-5)
    flat = output.distances.flatten(2)
    assert torch.equal(output.min_distances, flat.amin(2))
    assert torch.equal(flat.gather(2, output.cells[..., None])[..., 0], output.min_distances)
    assert torch.equal(output.similarities, output.similarity_map.flatten(2).amax(2))
    assert output.similarity_map.shape == output.distances.shape == (4, 6, 5, 5)


def test_features_that_were_kept_give_the_same_output():
    model = net()
    x = images()
    z0 = model.features(x)
    assert torch.equal(model.from_features(z0).logits, model(x).logits)
    assert torch.equal(model.embed_features(z0), model.embed(x)) and torch.equal(model.logits(x), model(x).logits)


def test_logits_of_the_proto_head_are_sums_over_the_prototypes_of_a_class():
    """Property 10."""
    model = net()
    output = model(images())
    assert torch.allclose(output.logits, output.similarities.view(4, CLASSES, EACH).sum(2))
    assert not list(model.head.parameters())
    order = torch.tensor([1, 0, 2, 3, 5, 4])
    before = output.logits
    model.prototypes.data = model.prototypes.data[order]
    assert torch.allclose(model(images()).logits, before)
    model.prototypes.data = model.prototypes.data.roll(EACH, 0)
    assert torch.allclose(model(images()).logits, before.roll(1, 1))


def test_a_sparse_head_of_ones_and_a_linear_one_of_the_classes_are_the_proto_head():
    """Property 10."""
    expected = net().logits(images())
    assert torch.equal(net(readout_type="sparse").logits(images()), expected)
    assert torch.equal(net(readout_type="linear", incorrect_strength=0.0).logits(images()), expected)


def test_heads_have_no_bias_and_start_as_published():
    assert {n: p.shape for n, p in net(readout_type="linear").head.named_parameters()} == {"weight": (CLASSES, 6)}
    assert {n: p.shape for n, p in net(readout_type="sparse").head.named_parameters()} == {"weight": (6,)}
    weights = net(readout_type="linear", correct_strength=2.0).weights
    assert weights[1].tolist() == [-0.5, -0.5, 2.0, 2.0, -0.5, -0.5]


@every_head
def test_contributions_sum_up_to_the_logit(head):
    """Property 10."""
    model, classes = shuffled_head(net(readout_type=head)), torch.tensor([2, 0, 1, 1])
    output = model(images())
    found = model.contributions(output.similarities, classes)
    assert torch.allclose(found.sum(1), output.logits.gather(1, classes[:, None])[:, 0], atol=1e-5)
    if head != "linear":
        assert (found[0, :4] == 0).all() and (found[0, 4:] != 0).all()


def test_prototypes_belong_to_classes_in_blocks():
    """Property 11."""
    assert classes_of(6, 3).tolist() == [0, 0, 1, 1, 2, 2] == net().prototype_class.tolist()
    assert net().own.sum(1).tolist() == [2, 2, 2]


def test_prototypes_that_cannot_be_shared_out_are_refused_with_the_nearest_numbers():
    """Property 11."""
    said = "model.num_prototypes must be a multiple of the 10 classes, not "
    assert refusal(classes_of, 25, 10) == said + "25: take 20 or 30"
    assert refusal(classes_of, 3, 10) == said + "3: take 10"
    assert said + "101: take 100 or 110" == refusal(models.build, presets.Model(num_prototypes=101), 10, 32, 0)
    assert "at least one class" in refusal(models.build, presets.Model(), 0, 32, 0)


def test_prototypes_without_classes_need_a_linear_head():
    model = net(class_specific=False, readout_type="linear", num_prototypes=7)
    assert model.prototype_class.tolist() == [-1] * 7 and not model.own.any()
    assert model(images()).logits.shape == (4, CLASSES) and model.weights.abs().max() <= 7**-0.5
    assert "needs class_specific" in refusal(settings, class_specific=False)


def test_prototypes_that_are_not_learned_get_no_gradient():
    """Spec section 14, W14: nor is one computed; the features get theirs."""
    model = net(learn_prototypes=False)
    model.logits(images()).sum().backward()
    assert model.prototypes.grad is None and not model.prototypes.requires_grad
    assert model.features[0].weight.grad.abs().sum() > 0


def test_prototypes_start_between_0_and_1_without_a_source():
    """Spec sections 2.3 and 2.5."""
    model = net(num_prototypes=300)
    assert model.prototypes.shape == (300, DIM, 1, 1)
    assert 0 <= model.prototypes.min() < 0.02 and 0.98 < model.prototypes.max() < 1
    assert (model.source_image == -1).all() and model.source_cell.shape == (300, 2) and (model.source_cell == -1).all()


def test_parameters_stand_in_four_groups():
    groups = {name.split(".")[0] for name, _ in net(readout_type="linear").named_parameters()}
    assert groups == {"features", "add_on", "prototypes", "head"}


# ---------------------------------------------------------------------------------------------- add-on layers


def kinds(layers):
    return [type(layer).__name__ for layer in layers]


def test_regular_layers_are_two_convolutions_and_a_sigmoid():
    layers = add_on_layers(40, 8, "regular")
    assert kinds(layers) == ["Conv2d", "ReLU", "Conv2d", "Sigmoid"]
    assert [(c.in_channels, c.out_channels) for c in layers[::2]] == [(40, 8), (8, 8)]


@pytest.mark.parametrize(
    ("channels", "dim", "widths"),
    [(512, 192, [512, 256, 192]), (512, 128, [512, 256, 128]), (64, 128, [64, 128]), (20, 3, [20, 10, 5, 3])],
)
def test_bottleneck_layers_halve_the_channels(channels, dim, widths):
    layers = add_on_layers(channels, dim, "bottleneck")
    expected = [pair for a, b in zip(widths, widths[1:], strict=False) for pair in ((a, b), (b, b))]
    assert [(c.in_channels, c.out_channels) for c in layers[::2]] == expected
    assert kinds(layers)[1::2] == ["ReLU"] * (len(expected) - 1) + ["Sigmoid"]


def test_add_on_layers_start_as_published():
    """Spec section 2.2: Kaiming (fan-out) but for the last one, Xavier."""
    with runtime.seeded(0, "add_on"):
        layers, plain = add_on_layers(400, 300, "regular"), add_on_layers(400, 300, "regular", init_weights=False)
    assert layers[0].weight.std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert layers[2].weight.std().item() == pytest.approx(math.sqrt(2 / 600), rel=0.02)
    assert not layers[0].bias.any() and not layers[2].bias.any() and plain[0].bias.any()


# -------------------------------------------------------------------------------------------- building, modes


def test_a_network_is_a_function_of_its_seed():
    model = presets.Model(feature_layer="stem", num_prototypes=6)
    one, same, other = (models.build(model, 3, 32, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["prototypes"], other["prototypes"])


def test_a_classifier_is_the_backbone_its_mean_and_a_linear_layer():
    model = models.build(presets.Model(name="classifier", feature_layer="stage1"), 4, 32, 0).eval()
    x = torch.randn(2, 3, 32, 32, generator=draws("classifier"))
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"features", "head"}
    assert torch.allclose(model(x).logits, model.head(model.features(x).mean((2, 3))))


def test_memory_layout_changes_nothing():
    model, x = net(), images()
    expected = model(x)
    found = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    assert torch.allclose(found.distances, expected.distances, atol=1e-6)


def test_autocast_ends_with_the_backbone():
    model, x = net(), images()
    with torch.autocast("cpu", torch.bfloat16):
        z0, output = model.features(x), model(x)
    assert z0.dtype == torch.bfloat16
    assert {output.logits.dtype, output.distances.dtype, model.embed(x).dtype} == {torch.float32}
    assert torch.equal(output.logits, model.from_features(z0.float()).logits)


def test_gradients_in_training_are_finite_and_reach_every_group():
    model, weights = net(readout_type="linear").train(), presets.Loss(cluster=0.8, separation=0.08, l1=1e-4)
    losses.total(losses.terms(model, model(images()), LABELS, weights), weights).backward()
    reached = {name.split(".")[0] for name, value in model.named_parameters() if value.grad.abs().sum() > 0}
    assert reached == {"features", "add_on", "prototypes", "head"}
    assert all(value.grad.isfinite().all() for value in model.parameters())


def test_frozen_batch_normalisation_stays_in_evaluation_mode():
    model = ProtoNet(small_features(), 8, CLASSES, settings(), frozen_norm=True).train()
    assert model.training and model.features[0].training and not model.features[1].training
    assert ProtoNet(small_features(), 8, CLASSES, settings()).train().features[1].training


# ------------------------------------------------------------------------------------ state, pruning, what it costs


@every_head
def test_a_network_read_back_gives_the_same_bits(head, tmp_path):
    """Property 23."""
    model = shuffled_head(net(readout_type=head))
    model.source_image.copy_(torch.arange(6) * 10)
    model.source_cell.copy_(torch.arange(12).view(6, 2))
    artifacts.save_tensors(tmp_path / "net.safetensors", model.state_dict())
    again = net(seed=1, readout_type=head)
    models.load(again, artifacts.load_tensors(tmp_path / "net.safetensors")[0])
    assert torch.equal(again.logits(images()), model.logits(images()))
    assert torch.equal(again.source_image, model.source_image) and torch.equal(again.source_cell, model.source_cell)


@every_head
def test_a_pruned_network_adds_up_what_is_left(head, tmp_path):
    model = shuffled_head(net(readout_type=head))
    model.source_image.copy_(torch.arange(6))
    output, weights, keep = model(images()), model.weights.detach(), torch.tensor([1, 2, 3, 5])
    models.prune(model, [0, 4])
    left = model(images())
    assert torch.allclose(left.logits, output.similarities[:, keep] @ weights[:, keep].T, atol=1e-5)
    assert torch.allclose(left.distances, output.distances[:, keep], atol=1e-6)  # the sum's order is the library's
    assert model.prototype_class.tolist() == [0, 1, 1, 2] and torch.equal(model.source_image, keep)

    artifacts.save_tensors(tmp_path / "net.safetensors", model.state_dict())
    again = net(seed=1, readout_type=head)
    models.load(again, artifacts.load_tensors(tmp_path / "net.safetensors")[0])
    assert torch.equal(again.logits(images()), left.logits)


def test_pruning_refuses_what_would_leave_a_class_bare():
    assert refusal(models.prune, net(), [2, 3]) == "class 1 would be left without a prototype"
    assert "numbers 0 to 5" in refusal(models.prune, net(), [6]) and "numbers" in refusal(models.prune, net(), [-1])
    for mask in (torch.arange(6) == 5, torch.tensor([5.0])):
        assert "mask.nonzero().flatten()" in refusal(models.prune, net(), mask)
    free = net(class_specific=False, readout_type="linear")
    assert refusal(models.prune, free, range(6)) == "the network would be left without a prototype"
    models.prune(free, [])
    assert len(free.prototypes) == 6


def test_what_is_not_learned_is_still_not_learned_after_pruning():
    model = net(learn_prototypes=False)
    models.prune(model, [0])
    assert not model.prototypes.requires_grad


SIZES = {  # spec section 8.6: 10^9 MACs of an image of 224 pixels, millions of parameters
    ("vgg16_bn", "maxpool5"): (15.40, 15.24),
    ("vgg16_bn", "maxpool4"): (14.09, 8.16),
    ("vgg19_bn", "maxpool5"): (19.56, 20.55),
    ("vgg19_bn", "maxpool4"): (17.79, 11.11),
    ("vgg11_bn", "maxpool4"): (6.68, 5.02),
    ("resnet18", "layer3"): (1.50, 3.25),
    ("resnet18", "layer2"): (1.34, 1.13),
    ("resnet34", "layer2"): (2.04, 1.79),
    ("resnet50", "layer3"): (3.42, 9.16),
    ("resnet50", "layer2"): (2.24, 1.96),
    ("densenet121", "transition2"): (2.19, 1.90),
    ("densenet121", "transition1"): (1.62, 0.82),
}


@pytest.mark.parametrize(("name", "layer"), SIZES)
def test_networks_cost_what_was_measured(name, layer):
    """Property 25."""
    chosen = presets.Model(feature_extractor=name, feature_layer=layer, num_prototypes=2000, prototype_dim=192)
    with torch.device("meta"):
        model = models.build(chosen, 200, 224, 0)
    billions, millions = SIZES[name, layer]
    found = info.model_info(model, 224)
    assert found["macs"] / 1e9 == pytest.approx(billions, rel=0.01)
    assert found["total_params"] / 1e6 == pytest.approx(millions, abs=0.0051)
    assert found["model_size"] == pytest.approx(found["total_params"] * 4e-6)


def test_the_cost_of_an_image_does_not_depend_on_the_batch():
    """Property 25; that of a convolution is known."""
    model = net()
    assert info.macs(model, 11) == info.macs(model, 11, batch_size=7)
    assert info.macs(nn.Conv2d(3, 8, 3, stride=2), 11) == 5 * 5 * 8 * 27
    assert info.macs(model, 11) == 25 * (8 * 27 + 8 * DIM + DIM * DIM + DIM * 6) + 6 * CLASSES
    assert not model.training and info.macs(model.train(), 11) and model.training
    frozen = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8).eval())
    assert info.macs(frozen, 11) and frozen.training and not frozen[1].training, "each module keeps its own mode"


def test_facts_of_a_network_have_the_names_of_the_original():
    model = net(learn_prototypes=False)
    found = info.model_info(model, 11, images(n=2))
    assert found["total_params"] - found["trainable_params"] == model.prototypes.numel()
    assert found["inference_time_batch"] == 2 * found["inference_time_sample"] > 0


class Field:
    def __init__(self, mean_percent):
        self.mean_percent = mean_percent


def test_cells_that_see_the_whole_image_are_warned_of():
    assert info.too_much_seen(Field(52.5)) is None
    assert "sees 99.2 % of the image" in info.too_much_seen(Field(99.236))
    assert info.model_info(net(), 11, field=Field(52.5))["receptive_field_percent"] == 52.5


# ------------------------------------------------------------------------------------------------------ losses


def brute_force(distance, labels, owner):
    """(cluster, separation, average separation) one image after the other."""
    rows = []
    for row, label in zip(distance.tolist(), labels.tolist(), strict=True):
        own = [d for d, c in zip(row, owner.tolist(), strict=True) if c == label]
        other = [d for d, c in zip(row, owner.tolist(), strict=True) if c != label]
        rows.append((min(own), -min(other), -sum(other) / len(other)))
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


ALL = presets.Loss(xent=1.0, cluster=0.8, separation=0.08, l1=1e-4)
LABELS = torch.tensor([2, 0, 1, 1])


@every_head
def test_terms_are_the_formulas(head):
    """Property 17."""
    model = shuffled_head(net(readout_type=head))
    output = model(images())
    found = losses.terms(model, output, LABELS, ALL)
    cluster, separation, average = brute_force(output.min_distances, LABELS, model.prototype_class)
    assert found["xent"].item() == pytest.approx(F.cross_entropy(output.logits, LABELS).item())
    assert found["cluster_loss"].item() == pytest.approx(cluster, rel=1e-5)
    assert found["separation_loss"].item() == pytest.approx(separation, rel=1e-5)
    assert found["avg_separation_loss"].item() == pytest.approx(average, rel=1e-5)
    assert not found["avg_separation_loss"].requires_grad
    weight = next(model.head.parameters(), None)
    if head == "proto":
        assert "l1_loss" not in found
    else:
        counted = weight.abs().sum() if head == "sparse" else weight[~model.own].abs().sum()
        assert found["l1_loss"].item() == pytest.approx(counted.item(), rel=1e-5)
    whole = sum(getattr(ALL, w) * found[t] for t, w in losses.WEIGHTS.items() if t in found)
    assert losses.total(found, ALL).item() == pytest.approx(whole.item())


@pytest.mark.parametrize("term", losses.WEIGHTS)
def test_a_term_of_weight_zero_is_not_computed(term):
    """Property 17."""
    model = net(readout_type="linear")
    found = losses.terms(model, model(images()), LABELS, ALL.override({losses.WEIGHTS[term]: 0.0}))
    gone = {term, "avg_separation_loss"} if term == "separation_loss" else {term}
    assert set(found) == {*losses.WEIGHTS, "avg_separation_loss"} - gone


def test_without_classes_any_prototype_may_be_near_and_none_must_be_far():
    model = net(class_specific=False, readout_type="linear")
    output = model(images())
    found = losses.terms(model, output, LABELS, ALL)
    assert set(found) == {"xent", "cluster_loss", "l1_loss"}
    assert torch.allclose(found["cluster_loss"], output.min_distances.min(1).values.mean())
    assert torch.allclose(found["l1_loss"], model.head.weight.abs().sum()) and isinstance(model.head, LinearHead)


def test_a_classifier_has_cross_entropy_alone():
    model = Classifier(small_features(), 8, CLASSES)
    assert set(losses.terms(model, model(images()), LABELS, ALL)) == {"xent"}


def test_a_loss_without_terms_is_refused():
    model = net()
    found = losses.terms(model, model(images()), LABELS, presets.Loss(xent=0.0, l1=1.0))
    assert "nothing to learn from" in refusal(losses.total, found, presets.Loss(xent=0.0, l1=1.0))


def test_of_one_class_there_is_no_other_to_be_far_from():
    """The least distance of none would be infinite."""
    with runtime.seeded(0, "net"):
        model = ProtoNet(small_features(), 8, 1, settings(num_prototypes=2)).eval()
    found = losses.terms(model, model(images()), torch.zeros(4, dtype=torch.long), ALL)
    assert "separation_loss" not in found and "cluster_loss" in found
    assert losses.total(found, ALL).isfinite()
