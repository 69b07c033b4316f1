// The page itself: its state, what it draws of it, and its controls. page_graph.js comes before it.
"use strict";

// ------------------------------------------------------------------------------------------------- state

const NAMES = Object.keys(DATA.graphs);
const element = id => document.getElementById(id);
const SLIDERS = {delta: ["delta", v => `${(100 * v).toFixed(1)} %`], fdr: ["fdr", v => v.toPrecision(2)],
                 critical: ["critical", v => v.toFixed(2)]};
const FDR = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1];  // what the slider's places stand for
let state = {graph: NAMES[0], beside: "", mode: "stored", ...chosenBy(DATA.graphs[NAMES[0]]), node: null};

function chosenBy(graph) {
  const {delta, fdr, critical, alpha, inhibitors, mode} = graph.selection;
  return {delta, fdr, critical, alpha, inhibitors: inhibitors === null ? mode === "recommended" : inhibitors};
}

function selectionOf(graph) {
  // null: as the graph was stored
  if (state.mode === "stored") return null;
  const {delta, fdr, critical, alpha, inhibitors, mode} = state;
  return {...graph.selection, delta, fdr, critical, alpha, inhibitors, mode};
}

function shown(name) {
  const graph = DATA.graphs[name], selection = selectionOf(graph);
  return selection ? refilter(graph, selection) : graph;
}

function set(changes) {
  const before = state;
  state = {...state, ...changes};
  if ("graph" in changes && state.mode === "stored") Object.assign(state, chosenBy(DATA.graphs[state.graph]));
  try {
    render();
  } catch (error) {
    state = before;
    render();
    element("message").textContent = `Not possible: ${error.message}`;
  }
}

// ------------------------------------------------------------------------------------------------- drawing

const SVG = "http://www.w3.org/2000/svg";
const minus = text => String(text).replace(/-/g, "−");
const percent = share =>
  Number.isNaN(share) ? "unknown" : minus(`${share > 0 ? "+" : ""}${(100 * share).toFixed(1)} %`);
const short = value => {
  value = number(value);
  if (Number.isNaN(value)) return "–";
  const text = value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)
    ? value.toExponential(1).replace("e+", "e") : Number.isInteger(value) ? String(value) : value.toPrecision(3);
  return minus(text);
};

function make(tag, attributes = {}, children = []) {
  const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function render() {
  for (const [id, [key, format]] of Object.entries(SLIDERS)) {
    element(id).value = key === "fdr" ? FDR.reduce((best, v, k) =>
      Math.abs(Math.log(v / state.fdr)) < Math.abs(Math.log(FDR[best] / state.fdr)) ? k : best, 0) : state[key];
    element(`${id}-value`).textContent = format(state[key]);
  }
  const reference = state.mode === "reference" ||
    (state.mode === "stored" && DATA.graphs[state.graph].selection.mode === "reference");
  element("delta-control").hidden = element("fdr-control").hidden = reference;
  element("critical-control").hidden = !reference;
  for (const id of ["graph", "beside", "mode"]) element(id).value = state[id];
  element("inhibitors").checked = state.inhibitors;
  element("message").textContent = "";
  const names = [state.graph, ...(state.beside ? [state.beside] : [])];
  const graphs = names.map(shown), layouts = graphs.map(place);
  const largest = Math.max(...layouts.flatMap(l => l.nodes.map(n => size(n.share)))) || 1;
  document.body.classList.toggle("two", names.length === 2);
  const focused = document.activeElement && document.activeElement.dataset.key;
  const side = document.activeElement && document.activeElement.closest("[data-side]");
  element("graphs").replaceChildren(...names.map((name, k) => card(name, graphs[k], layouts[k], largest, k)));
  if (focused && side) {
    const again = document.querySelector(`[data-side="${side.dataset.side}"] [data-key="${CSS.escape(focused)}"]`);
    if (again) again.focus();
  }
  element("detail").replaceChildren(...names.map((name, k) => detail(name, graphs[k], layouts[k], k)));
  element("comparison").replaceChildren(...(names.length === 2 ? [comparison(names, graphs)] : []));
}

const card = (name, graph, layout, largest, k) => {
  const about = `${graph.model} on ${graph.dataset || "its images"}, ${graph.effect} of class ${graph.target}` +
    (graph.other === null ? "" : ` against ${graph.other}`) + `, ${graph.sample_indices.length} images, ` +
    (graph.mode === "reference" ? "z test" : `paired test, δ ${short(100 * graph.selection.delta)} %`);
  return make("section", {class: "card", "data-side": k}, [
    make("h2", {text: name}), make("p", {class: "soft", text: about}), drawing(name, graph, layout, largest, k)]);
};

function drawing(name, graph, layout, largest, k) {
  const width = Math.max(440, (element("graphs").clientWidth - (state.beside ? 20 : 0)) / (state.beside ? 2 : 1) - 42);
  const row = Math.max(64, Math.min(104, 620 / layout.rows.length));
  const left = Math.max(74, 7.6 * Math.max(...layout.rows.map(r => r.space.length)) + 12), right = 104;
  const height = row * (layout.rows.length - 1) + 60;
  const X = x => left + x * (width - left - right), Y = y => 34 + y * row;
  const svg = make("svg:svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "group",
                               "aria-label": `Causal graph ${name}: arrow keys walk, Enter opens a node`});
  const strongest = {};
  layout.edges.forEach(e => { strongest[e.layer] = Math.max(strongest[e.layer] || 0, size(e.share)); });
  const lines = make("svg:g", {class: state.node ? "edges some" : "edges"});
  for (const e of layout.edges) {
    const part = size(e.share) / (strongest[e.layer] || 1), middle = (Y(e.from.y) + Y(e.to.y)) / 2;
    const on = state.node && (e.source === state.node || e.target === state.node);
    const kind = Number.isNaN(e.share) ? "unknown" : e.share < 0 ? "cause" : "inhibitor";
    lines.append(make("svg:path", {
      d: `M${X(e.from.x).toFixed(1)} ${Y(e.from.y)}C${X(e.from.x).toFixed(1)} ${middle} ${X(e.to.x).toFixed(1)} ` +
         `${middle} ${X(e.to.x).toFixed(1)} ${Y(e.to.y)}`,
      class: `${kind}${on ? " on" : ""}`, "stroke-width": (0.5 + 3.6 * part ** 1.2).toFixed(2),
      "stroke-opacity": Number.isNaN(e.share) ? 0.5 : (on ? 0.45 + 0.55 * part : 0.06 + 0.84 * part ** 2).toFixed(3)}));
  }
  const groups = layout.rows.map((r, y) => make("svg:text", {x: 0, y: Y(y) + 4, class: "space", text: r.space}));
  const found = layout.rows.flatMap((r, y) => {
    const words = [r.tested ? `${r.causes} of ${r.tested}` : "", r.inhibitors ? `+ ${r.inhibitors} inhib.` : "",
                   r.fallback ? "(fallback)" : "", r.hidden ? `(${r.hidden} hidden)` : ""].filter(Boolean);
    return words.map((text, line) => make("svg:text",
      {x: width - right + 14, y: Y(y) + 4 + 14 * (line - (words.length - 1) / 2), class: "found", text}));
  });
  const shapes = [...layout.nodes].sort((a, b) => b.rank - a.rank || size(b.share) - size(a.share))
    .map(node => circle(node, X, Y, largest, name, layout, k));
  svg.append(lines, ...groups, ...found, ...numbers(layout, X, Y, width - left - right), ...shapes);
  return make("div", {class: "scroll"}, [svg]);
}

const radius = (share, largest) => 3 + 10 * Math.sqrt(size(share) / Math.max(largest, 0.1));
const keyOf = node => `${node.space}/${node.node}`;

function circle(node, X, Y, largest, name, layout, k) {
  const key = keyOf(node), square = node.role === "target" || node.role === "input";
  const r = square ? 7 : node.role === "tested" ? 2 : radius(node.share, largest);
  const label = `node ${node.node} of ${node.space}, ${node.role === "tested" ? "no cause" : node.role}` +
    (Number.isNaN(node.share) ? "" : `, effect ${percent(node.share)}`);
  const chosen = state.node === key;
  const current = chosen || (!layout.nodes.some(n => keyOf(n) === state.node) && node.role === "target");
  const group = make("svg:g", {
    class: `node ${node.role}${chosen ? " chosen" : ""}`, "data-key": key, role: "button", "aria-label": label,
    "aria-pressed": chosen, tabindex: current ? 0 : -1, onclick: () => set({node: chosen ? null : key}),
    onkeydown: event => walk(event, node, layout, k)}, [make("svg:title", {text: label})]);
  const [x, y] = [X(node.x), Y(node.y)];
  group.append(make("svg:circle", {cx: x, cy: y, r: Math.max(r, 6), class: "hit"}));
  group.append(square ? make("svg:rect", {x: x - r, y: y - r, width: 2 * r, height: 2 * r, rx: 2, class: "shape"})
    : make("svg:circle", {cx: x, cy: y, r, class: "shape"}));
  return group;
}

function numbers(layout, X, Y, width) {
  // of the strongest nodes of each row, where there is room
  const chosen = [];
  const found = layout.nodes.filter(n => n.role !== "tested" && n.role !== "input");
  for (const node of found.sort((a, b) => size(b.share) - size(a.share))) {
    if (chosen.every(other => other.y !== node.y || Math.abs(other.x - node.x) * width > 24)) chosen.push(node);
  }
  return chosen.map(node => make("svg:text", {x: X(node.x), y: Y(node.y) - 14, class: "number", text: node.node}));
}

function walk(event, node, layout, k) {
  const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  let next = null;
  if (event.key === "Enter" || event.key === " ") return event.preventDefault(), set({node: keyOf(node)});
  if (event.key === "Escape") return set({node: null});
  if (!(event.key in steps)) return;
  event.preventDefault();
  const [dx, dy] = steps[event.key];
  if (dx) {
    const row = layout.nodes.filter(n => n.y === node.y && n.role !== "tested" || n === node);
    next = row[row.indexOf(node) + dx];
  } else {
    const row = layout.nodes.filter(n => n.y === node.y + dy && n.role !== "tested");
    next = row.sort((a, b) => Math.abs(a.x - node.x) - Math.abs(b.x - node.x))[0];
  }
  if (!next) return;
  const at = document.querySelector(`[data-side="${k}"] [data-key="${CSS.escape(keyOf(next))}"]`);
  document.querySelectorAll(`[data-side="${k}"] .node[tabindex="0"]`).forEach(n => n.setAttribute("tabindex", -1));
  at.setAttribute("tabindex", 0);
  at.focus();
}

// ------------------------------------------------------------------------------------------------- a node

function detail(name, graph, layout, k) {
  const panel = make("section", {class: "card", "data-panel": k});
  const node = layout.nodes.find(n => keyOf(n) === state.node);
  if (!node) {
    const text = state.node ? `${name} has no node ${state.node.replace("/", " ")}.`
      : "Choose a node: click it, or walk to it with the arrow keys and press Enter.";
    panel.append(make("p", {class: "soft", text}));
    return panel;
  }
  const said = {target: "the class that is explained", cause: "a cause", inhibitor: "an inhibitor",
                input: "the input", tested: "no cause"};
  panel.append(make("h2", {}, [`Node ${node.node} of ${node.space} `,
                               make("span", {class: `badge ${node.role}`, text: said[node.role]})]));
  if (state.beside) panel.append(make("p", {class: "soft", text: name}));
  for (const layer of graph.layers.filter(l => l.source_layer === node.space && l.rowOf.has(node.node))) {
    panel.append(...measured(name, graph, layer, node.node));
  }
  panel.append(...neighbours(layout));
  return panel;
}

function measured(name, graph, layer, node) {
  const s = layer.statistics, k = layer.rowOf.get(node);
  const into = `${layer.effects.length} node${layer.effects.length === 1 ? "" : "s"} of ${layer.target_layer}`;
  const head = make("p", {text: `Its edges in ${layer.layer} lead into ${into}.`});
  if (!s) return [head, make("p", {class: "soft", text: "Nothing was tested here: the node is listed."})];
  const raises = s.mean_d[k] > 0, scale = scaleOf(s), n = s.n_images;
  const half = number(DATA.interval[n]) * number(s.std_d[k]) / Math.sqrt(n), mean = s.mean_d[k];
  const rows = [
    ["effect, mean d", `${short(mean)} (${percent(mean / scale)} of ${ratios(s) ? "the mean" : "the sd"})`],
    ["95 % interval", Number.isNaN(half) ? "–" : `${short(mean - half)} to ${short(mean + half)}`],
    ["standard deviation of d", short(s.std_d[k])], ["mean relative effect", short(s.mean_r[k])],
    ["shift of the prediction, KL", `${short(s.mean_kl[k])} nats`], ["paired t", short(s.t[k])],
    [`p and q, as ${raises ? "an inhibitor" : "a cause"}`,
     `${short((raises ? s.p_inhibitor : s.p)[k])} and ${short((raises ? s.q_inhibitor : s.q)[k])}`]];
  const table = make("table", {class: "facts"}, rows.map(([what, value]) =>
    make("tr", {}, [make("th", {scope: "row", text: what}), make("td", {text: value})])));
  const evidence = (DATA.pictures[name] || {})[`${layer.layer}/${node}`] || {};
  const parts = [head, histogram(evidence.effects, mean, half, scale, graph), table];
  const figure = (sources, caption, kind) => make("figure", {class: kind}, [
    make("div", {class: "pictures"}, sources.map(src => make("img", {src, alt: caption}))),
    make("figcaption", {class: "soft", text: caption})]);
  if (evidence.map) parts.push(figure([evidence.image, evidence.map].filter(Boolean), evidence.caption, "map"));
  if (evidence.images && evidence.images.length) {
    parts.push(figure(evidence.images, "The images on which cutting it changes the outcome most", "most"));
  }
  return parts;
}

function histogram(effects, mean, half, scale, graph) {
  const width = 420, height = effects ? 136 : 58, base = height - 20, left = 14;
  const least = graph.selection.mode === "recommended" ? graph.selection.delta * scale : 0;
  const known = [0, mean - half, mean + half, mean, -1.3 * least, 1.3 * least, ...(effects || [])];
  const ends = known.filter(Number.isFinite);
  let [low, high] = [Math.min(...ends), Math.max(...ends)];
  const margin = (high - low || 1) * 0.04;
  [low, high] = [low - margin, high + margin];
  const X = v => left + (v - low) / (high - low) * (width - 2 * left);
  const svg = make("svg:svg", {viewBox: `0 0 ${width} ${height}`, class: "histogram", role: "img",
    "aria-label": `mean effect ${short(mean)}, 95 % interval ${short(mean - half)} to ${short(mean + half)}`});
  const line = (v, cls, y0 = 8) => svg.append(make("svg:line", {x1: X(v), x2: X(v), y1: y0, y2: base, class: cls}));
  if (effects) {
    const bins = 24, counts = Array(bins).fill(0);
    effects.forEach(d => { counts[Math.min(bins - 1, Math.floor((d - low) / (high - low) * bins))] += 1; });
    const top = Math.max(...counts), step = (width - 2 * left) / bins;
    counts.forEach((count, k) => svg.append(make("svg:rect", {x: left + k * step + 0.5, width: step - 1,
      y: base - (base - 26) * count / top, height: (base - 26) * count / top, class: k * (high - low) / bins + low +
      (high - low) / bins / 2 < 0 ? "bar cause" : "bar inhibitor"})));
  }
  svg.append(make("svg:line", {x1: left, x2: width - left, y1: base, y2: base, class: "axis"}));
  line(0, "zero");
  if (least) [-least, least].forEach(v => line(v, "least"));
  const y = effects ? 14 : 22;
  if (Number.isFinite(half)) {
    svg.append(make("svg:line", {x1: X(mean - half), x2: X(mean + half), y1: y, y2: y, class: "interval"}));
  }
  svg.append(make("svg:circle", {cx: X(mean), cy: y, r: 4, class: "mean"}));
  const written = [];
  for (const [v, text] of [[0, "0"], [mean, short(mean)], ...(least ? [[-least, "−δ"], [least, "δ"]] : [])]) {
    if (written.some(w => Math.abs(w - X(v)) < 34)) continue;
    written.push(X(v));
    svg.append(make("svg:text", {x: X(v), y: base + 14, class: "tick", text}));
  }
  const caption = effects ? `Effect d on each of ${effects.length} images. ` : "";
  return make("figure", {class: "effects"}, [svg, make("figcaption", {class: "soft",
    text: `${caption}Dot and bar: mean effect, 95 % interval${least ? "; dashed: the least effect δ" : ""}.`})]);
}

function neighbours(layout) {
  const ends = [["Strongest edges up", "source", "target"], ["Strongest edges from below", "target", "source"]];
  return ends.flatMap(([title, own, other]) => {
    const edges = layout.edges.filter(e => e[own] === state.node).reverse().slice(0, 8);
    if (!edges.length) return [];
    return [make("h3", {text: title}), make("div", {class: "chips"}, edges.map(e =>
      make("button", {class: `chip ${e.share < 0 ? "cause" : e.share > 0 ? "inhibitor" : ""}`, type: "button",
        "data-go": e[other], onclick: () => set({node: e[other]}),
        text: `${e[other].replace("/", " ")}${Number.isNaN(e.share) ? "" : ` ${percent(e.share)}`}`})))];
  });
}

function comparison(names, graphs) {
  const same = graphs[0].weights_hash === graphs[1].weights_hash;
  const head = ["layer", "causes of both", `only ${names[0]}`, `only ${names[1]}`, "Jaccard index"];
  const rows = compare(...graphs).map(([layer, ...n]) =>
    make("tr", {}, [make("th", {scope: "row", text: layer}),
                    ...n.map((v, k) => make("td", {text: k === 3 ? v.toFixed(2) : v}))]));
  return make("section", {class: "card"}, [make("h2", {text: "What they share"}),
    make("table", {class: "shared"}, [
      make("thead", {}, [make("tr", {}, head.map(text => make("th", {scope: "col", text})))]),
      make("tbody", {}, rows)]),
    ...(same ? [] : [make("p", {class: "soft", text:
      "These are two networks: a node’s number in one says nothing about the other."})])]);
}

// ------------------------------------------------------------------------------------------------- controls

for (const id of ["graph", "beside"]) {
  element(id).append(...NAMES.map(name => make("option", {value: name, text: name})));
  element(id).addEventListener("change", event => set({[id]: event.target.value}));
}
element("beside-control").hidden = NAMES.length < 2;
const stored = () => DATA.graphs[state.graph].selection.mode;
const ownMode = () => state.mode === "stored" ? stored() : state.mode;
element("mode").addEventListener("change", event => set({mode: event.target.value}));
for (const [id, [key]] of Object.entries(SLIDERS)) {
  element(id).addEventListener("input", event => {
    const value = Number(event.target.value);
    set({[key]: key === "fdr" ? FDR[value] : value, mode: ownMode()});
  });
}
element("inhibitors").addEventListener("change", event => set({inhibitors: event.target.checked, mode: ownMode()}));
element("reset").addEventListener("click", () => set({mode: "stored", ...chosenBy(DATA.graphs[state.graph])}));
element("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--dark").trim() === "1";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
let width = window.innerWidth;
window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; render(); } });
window.sightline = {
  graphs: DATA.graphs, set, compare: (a, b) => compare(shown(a), shown(b)),
  refilter: (name, selection) => refilter(DATA.graphs[name], selection).layers.map(
    ({layer, effects, causes, inhibitors, rule, edges}) =>
      ({layer, effects, causes, inhibitors, rule, kept: edges ? edges.kept : null})),
  place: (name, selection) => place(selection ? refilter(DATA.graphs[name], selection) : DATA.graphs[name]),
  get state() { return state; },
};
render();
