"""The page of causal graphs in a real browser, from a file: what its sliders choose is what Python chooses, and it asks
for nothing beyond itself."""

import json
import math
import re
from dataclasses import replace

import pytest
from browsing import chromium, with_browser
from causal_nets import Depthwise, Fire, Residual
from causal_shelf import found, network, pictures, shelf

from helpers import widgets
from helpers.causal_graphs import layout
from helpers.causal_graphs.page import Evidence, to_html
from helpers.causal_graphs.statistics import Selection
from helpers.causal_graphs.views import Lab, evidence
from helpers.config import ConfigError

SELECTIONS = [
    Selection(),
    Selection(delta=0.0),
    Selection(delta=0.0, fdr=1.0, alpha=0.5),
    Selection(delta=0.01, inhibitors=False),
    Selection(delta=0.05, fdr=1e-4),
    Selection(delta=0.2),
    Selection(delta=0.5),
    Selection(mode="reference"),
    Selection(mode="reference", inhibitors=True, critical=0.3),
    Selection(mode="reference", critical=50.0),  # the fallback
    Selection(mode="reference", critical=50.0, fallback=-10.0),  # not even that
]


def needs_browser(test):
    return pytest.mark.slow(with_browser(test))


@pytest.fixture(scope="module")
def graphs():
    """By name: plain and refined chains, residual, depthwise and concatenating networks, one of a single image."""
    data, colour = pictures(), pictures(channels=3)
    named = {f"chain {target}, {name}": graph for (name, target), graph in shelf()[0].items()}
    named["refined"] = found(network(), data, 1, refine=True, selection=Selection(delta=0.001))
    named["soft"] = found(network(), data, 1, soft=True, selection=Selection(mode="reference"))
    named["one image"] = found(network(), data, 0, rows=[3], selection=Selection(mode="reference"))
    named["residual"] = found(network(Residual), colour, 2)
    named["depthwise"] = found(network(Depthwise), colour, 0, selection=Selection(delta=0.0))
    named["fire"] = found(network(Fire), colour, 1)
    return named


@pytest.fixture(scope="module")
def lab():
    return Lab(*shelf())


@pytest.fixture(scope="module")
def page(graphs, lab, tmp_path_factory):
    opened = lab.opened(("seed 0", 0))
    nodes = [(layer.layer, layer.tested[0]) for layer in opened.graph.layers if layer.statistics is not None]
    shown = {"chain 0, seed 0": {(layer, node): evidence(opened, layer, node) for layer, node in nodes}}
    return to_html(graphs, tmp_path_factory.mktemp("page") / "graphs.html", shown, "Graphs <of> noise")


# ------------------------------------------------------------------------------------------------- the file


def test_the_page_holds_all_that_it_needs_and_nothing_that_is_run_by_accident(page):
    text = page.read_text("utf-8")
    assert "<title>Graphs &lt;of&gt; noise</title>" in text
    addresses = set(re.findall(r"https?://[^\"'\s<)]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of SVG, which nobody fetches"
    assert not re.search(r"<(?:link|script|img|iframe)[^>]+(?:src|href)=(?![\"']data:)", text)


def test_the_same_graphs_make_the_same_bytes(graphs, page, tmp_path):
    first, second = (to_html(graphs, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_names_cannot_end_the_script(graphs, tmp_path):
    graph = replace(next(iter(graphs.values())), model="</script><script>alert(1)</script>")
    text = to_html({"</script>": graph}, tmp_path / "page.html").read_text("utf-8")
    assert text.count("</script>") == 2


def test_pages_of_nothing_are_refused(graphs, tmp_path):
    with pytest.raises(ConfigError, match="at least one graph"):
        to_html({}, tmp_path / "page.html")
    with pytest.raises(ConfigError, match="did you mean refined"):
        to_html(graphs, tmp_path / "page.html", {"refind": {("fc2", 0): Evidence()}})
    assert not (tmp_path / "page.html").exists()


# ------------------------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile"), logged=True) as driver:
        driver.get("about:blank")
        driver.get_log("performance")  # of the browser's own first page
        yield driver


@pytest.fixture
def opened(browser, page):
    """The page as it comes; afterwards, nothing was asked for and nothing went wrong."""
    browser.get(page.as_uri())
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} <= {page.as_uri()}


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def one(browser, selector):
    return browser.find_element("css selector", selector)


def move(browser, slider, value):
    """What a hand on the slider does."""
    script = "const it = document.getElementById(arguments[0]); it.value = arguments[1];"
    browser.execute_script(script + "it.dispatchEvent(new Event('input'))", slider, value)


def choose(browser, dropdown, value):
    from selenium.webdriver.support.select import Select

    Select(one(browser, f"#{dropdown}")).select_by_value(value)


def drawn(browser, role, side=0):
    """The keys of the nodes that are drawn in a role."""
    nodes = find(browser, f'[data-side="{side}"] .node.{role}')
    return {node.get_attribute("data-key") for node in nodes}


def expected(graph, role):
    return {f"{n.space}/{n.node}" for n in layout.place(graph).nodes if n.role == role}


def as_settings(selection):
    return selection.model_dump(mode="json")


def shape(graph):
    return [
        {"layer": layer.layer, "effects": list(layer.effects), "causes": list(layer.causes),
         "inhibitors": list(layer.inhibitors), "rule": layer.rule,
         "kept": None if layer.edges is None else list(layer.edges.kept)}
        for layer in graph.layers
    ]  # fmt: skip


@needs_browser
@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: s.digest())
def test_the_page_filters_exactly_as_refilter_does(opened, graphs, selection):
    for name, graph in graphs.items():
        if len(graph.sample_indices) < 2 and selection.mode == "recommended":
            continue
        script = "return sightline.refilter(arguments[0], arguments[1])"
        assert opened.execute_script(script, name, as_settings(selection)) == shape(graph.refilter(selection)), name


@needs_browser
@pytest.mark.parametrize("selection", [None, *SELECTIONS[:2], SELECTIONS[8]], ids=str)
def test_the_page_places_nodes_and_edges_as_layout_does(opened, graphs, selection):
    for name, graph in graphs.items():
        if len(graph.sample_indices) < 2 and selection and selection.mode == "recommended":
            continue
        script = "return sightline.place(arguments[0], arguments[1])"
        here = opened.execute_script(script, name, selection and as_settings(selection))
        there = layout.place(graph.refilter(selection) if selection else graph)
        assert [(n["space"], n["node"], n["role"]) for n in here["nodes"]] == [n[:3] for n in there.nodes], name
        for mine, other in zip(here["nodes"], there.nodes, strict=True):
            known = math.nan if mine["share"] is None else mine["share"]
            assert (mine["x"], known) == pytest.approx((other.x, other.share), nan_ok=True)
        edges = {(e["layer"], e["source"], e["target"]): e["share"] for e in here["edges"]}
        wanted = {(e.layer, "/".join(map(str, e.source)), "/".join(map(str, e.target))): e.share for e in there.edges}
        assert edges.keys() == wanted.keys()
        for key, share in wanted.items():
            known = math.nan if edges[key] is None else edges[key]
            assert known == pytest.approx(share, rel=1e-3, nan_ok=True), "norms are shortened"


@needs_browser
def test_it_opens_with_the_first_graph_as_it_was_stored(opened, graphs):
    graph = graphs["chain 0, seed 0"]
    for role in ("cause", "inhibitor", "tested", "target"):
        assert drawn(opened, role) == expected(graph, role)
    assert one(opened, "#delta-value").text == "2.0 %"
    assert len(find(opened, "svg .edges path")) == len(graph.edges())


@needs_browser
def test_a_slider_filters_what_is_drawn_and_reset_brings_it_back(opened, graphs):
    graph = graphs["chain 0, seed 0"]
    move(opened, "delta", 0.2)
    filtered = graph.refilter(Selection(**graph.selection).override({"delta": 0.2}))
    assert drawn(opened, "cause") == expected(filtered, "cause") != expected(graph, "cause")
    assert one(opened, "#delta-value").text == "20.0 %"
    assert one(opened, "#mode").get_attribute("value") == "recommended"
    move(opened, "fdr", 0)
    both = graph.refilter(Selection(**graph.selection).override({"delta": 0.2, "fdr": 0.0001}))
    assert drawn(opened, "cause") == expected(both, "cause")
    one(opened, "#inhibitors").click()
    assert drawn(opened, "inhibitor") == set()
    one(opened, "#reset").click()
    assert drawn(opened, "cause") == expected(graph, "cause")


@needs_browser
def test_the_other_rule_has_its_own_slider(opened, graphs):
    choose(opened, "mode", "reference")
    assert not one(opened, "#delta").is_displayed() and one(opened, "#critical").is_displayed()
    move(opened, "critical", 0.5)
    graph = graphs["chain 0, seed 0"]
    selection = Selection(**graph.selection).override({"mode": "reference", "critical": 0.5, "inhibitors": True})
    assert drawn(opened, "cause") == expected(graph.refilter(selection), "cause")


@needs_browser
def test_a_click_on_a_node_opens_its_panel_with_all_that_is_known(opened, graphs):
    from selenium.webdriver.common.action_chains import ActionChains

    graph = graphs["chain 0, seed 0"]
    layer = graph.layers[0]
    node = layer.tested[0]
    assert "Choose a node" in one(opened, "#detail").text
    circle = one(opened, f'[data-key="{layer.source_layer}/{node}"] .hit')
    ActionChains(opened).move_to_element(circle).click().perform()
    text = one(opened, "#detail").text
    assert f"Node {node} of {layer.source_layer}" in text and "95 % interval" in text
    assert find(opened, "#detail svg .bar"), "the effects on single images"
    assert len(find(opened, "#detail .map img")) == 2 and len(find(opened, "#detail .most img")) == 8
    loaded = "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert opened.execute_script(loaded)
    assert find(opened, "svg .edges.some path.on") or node not in layer.causes
    one(opened, f'[data-key="{layer.source_layer}/{node}"]').click()
    assert "Choose a node" in one(opened, "#detail").text, "a second click closes it"


@needs_browser
def test_the_interval_is_the_statistics(opened, graphs):
    layer = graphs["chain 1, seed 0"].layers[0]
    opened.execute_script("sightline.set({graph: 'chain 1, seed 0', node: arguments[0]})", f"{layer.source_layer}/0")
    low, high = (float(end[0]) for end in layer.statistics.interval())
    (row,) = [row.text for row in find(opened, "#detail tr") if "interval" in row.text]
    ends = [float(number.replace("−", "-")) for number in re.findall(r"[−\d][\d.e−]*", row.split("interval")[1])]
    assert ends == pytest.approx([low, high], rel=0.06)
    assert not find(opened, "#detail svg .bar") and find(opened, "#detail svg .interval"), "no single effects are known"


@needs_browser
def test_a_chip_leads_to_the_node_at_the_other_end(opened, graphs):
    graph = graphs["chain 0, seed 0"]
    cause = graph.layers[0].causes[0]
    opened.execute_script("sightline.set({node: arguments[0]})", f"{graph.layers[0].source_layer}/{cause}")
    chip = one(opened, "#detail .chip")
    end = chip.get_attribute("data-go")
    chip.click()
    assert end.replace("/", " ") == f"{graph.top} 0" and "Node 0 of fc2" in one(opened, "#detail").text


@needs_browser
def test_keys_walk_the_graph_and_open_a_node(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    assert len(find(opened, '.node[tabindex="0"]')) == 1, "one stop for the tabulator in the graph"
    opened.execute_script("document.querySelector('.node[tabindex=\"0\"]').focus()")
    ActionChains(opened).send_keys(Keys.ARROW_DOWN).perform()
    first = opened.execute_script("return document.activeElement.dataset.key")
    assert first.startswith("fc1/")
    ActionChains(opened).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ENTER).perform()
    assert opened.execute_script("return sightline.state.node") == first
    assert opened.execute_script("return document.activeElement.dataset.key") == first, "the focus stays where it was"
    ActionChains(opened).send_keys(Keys.ESCAPE).perform()
    assert opened.execute_script("return sightline.state.node") is None


@needs_browser
def test_two_graphs_stand_side_by_side_with_what_they_share(opened, graphs):
    choose(opened, "beside", "chain 1, seed 0")
    left, right = graphs["chain 0, seed 0"], graphs["chain 1, seed 0"]
    for side, graph in enumerate((left, right)):
        assert drawn(opened, "cause", side) == expected(graph, "cause")
    rows = find(opened, "#comparison tbody tr")
    for layer, shared, here, there, jaccard in [[c.text for c in r.find_elements("css selector", "*")] for r in rows]:
        row = left.compare(right).loc[layer]
        assert [int(shared), int(here), int(there)] == [row.shared, row.only_here, row.only_there]
        assert float(jaccard) == pytest.approx(row.jaccard, abs=0.005)
    assert "two networks" not in one(opened, "#comparison").text
    choose(opened, "beside", "chain 0, seed 1")
    assert "two networks" in one(opened, "#comparison").text


@needs_browser
def test_what_cannot_be_is_said_and_nothing_changes(opened, graphs):
    choose(opened, "graph", "one image")
    choose(opened, "mode", "recommended")
    assert "needs two images" in one(opened, "#message").text
    assert one(opened, "#mode").get_attribute("value") == "stored"
    assert drawn(opened, "cause") == expected(graphs["one image"], "cause")


@needs_browser
def test_light_and_dark(opened):
    def colour():
        return opened.execute_script("return getComputedStyle(document.body).backgroundColor")

    before = colour()
    one(opened, "#theme").click()
    assert colour() != before
    one(opened, "#theme").click()
    assert colour() == before


@needs_browser
def test_nothing_hangs_over_the_edge(opened):
    for width in (1280, 700):
        opened.set_window_size(width, 900)
        inside, outside = opened.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert inside <= outside
    opened.set_window_size(1280, 1000)


def test_evidence_is_what_the_network_makes_of_the_images(lab):
    opened = lab.opened(("seed 0", 0))
    layer = opened.graph.layers[0]
    known = evidence(opened, layer.layer, layer.tested[0], top=3)
    assert len(known.effects) == len(opened.graph.sample_indices) and len(known.images) == 3
    assert sum(known.effects) / len(known.effects) == pytest.approx(layer.statistics.mean_d[0], rel=1e-5, abs=1e-7)
    sign = -1 if sum(known.effects) < 0 else 1
    strongest = max(range(len(known.effects)), key=lambda k: sign * known.effects[k])
    assert known.image == known.images[0] == widgets.png(widgets.colour(opened.picture(strongest)))
    assert known.caption.startswith("Where the node")
