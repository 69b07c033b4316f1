// The graphs of the page, filtered and laid out: statistics.select, CausalGraph.refilter and layout.place once more,
// number by number; a test compares them.
//
// DATA = {graphs: {name: CausalGraph.to_dict()}, pictures: {name: {"layer/node": evidence}}, interval: {n_images: half
// a 95 % interval in standard errors}, most, most_edges, spread}.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const RANK = {target: 0, cause: 1, input: 2, inhibitor: 3, tested: 4};
const ROLES = Object.keys(RANK);
const number = value => value === null || value === undefined ? NaN : value;  // JSON has no NaN
const size = share => Number.isNaN(share) ? 0 : Math.abs(share);
const oneToOne = layer => layer.kind === "identity" || layer.kind === "depthwise";

for (const graph of Object.values(DATA.graphs)) {
  for (const layer of graph.layers) {
    layer.rowOf = new Map(layer.tested.map((node, k) => [node, k]));
    layer.columnOf = new Map(layer.measured_effects.map((effect, k) => [effect, k]));
  }
}

// ------------------------------------------------------------------------------------------------- statistics

const ratios = s => s.mean_y >= 1 && s.min_y > 0;
const scaleOf = s => ratios(s) ? Math.abs(s.mean_y) : number(s.std_y);

function select(s, selection) {
  // {causes, inhibitors: positions, rule} of statistics s
  const n = s.n_images, d = s.mean_d.map(number), all = d.map((_, k) => k);
  let causes, inhibitors, rule = "test";
  if (selection.mode === "reference") {
    const r = s.mean_r.map(number);
    if (n === 1) {
      causes = all.filter(k => r[k] < selection.single);
      inhibitors = all.filter(k => r[k] > -selection.single);
    } else {
      const least = s.std_cut.map(std => selection.critical * Math.sqrt((std * std + s.std_y * s.std_y) / n));
      causes = all.filter(k => d[k] < -least[k]);
      inhibitors = all.filter(k => d[k] > least[k]);
      if (!causes.length) {
        causes = all.filter(k => r[k] < selection.fallback);
        rule = "fallback";
      }
    }
  } else {
    if (n < 2) throw new Error("a paired test needs two images at least: take the reference rule");
    const least = selection.delta * scaleOf(s);
    const passes = (p, q) => all.filter(k => number(p[k]) < selection.alpha && number(q[k]) <= selection.fdr);
    causes = passes(s.p, s.q).filter(k => d[k] < -least);
    inhibitors = passes(s.p_inhibitor, s.q_inhibitor).filter(k => d[k] > least);
  }
  const keeps = selection.inhibitors === null ? selection.mode === "recommended" : selection.inhibitors;
  const found = new Set(causes);
  return {causes, inhibitors: keeps ? inhibitors.filter(k => !found.has(k)) : [], rule: causes.length ? rule : "none"};
}

function norm(layer, node, effect) {
  // of the weights of an edge; 0: there is none
  const norms = layer.weight_norms, row = norms && norms[layer.rowOf.get(node)];
  if (oneToOne(layer)) return node + layer.offset === effect ? (norms ? number(row[0]) : NaN) : 0;
  return norms ? number(row[layer.columnOf.get(effect)]) : NaN;
}

function refilterLayer(layer, selection, above) {
  const effects = layer.measured_effects.filter(e => above === null || above.has(e));
  const leading = nodes => !effects.length ? [] : nodes.filter(node =>
    effects.some(e => norm(layer, node, e) !== 0) || layer.measured_effects.every(e => norm(layer, node, e) === 0));
  let causes = layer.tested, inhibitors = [], rule = layer.rule, edges = layer.edges;
  if (layer.statistics) {
    const chosen = select(layer.statistics, selection);
    [causes, inhibitors] = [chosen.causes, chosen.inhibitors].map(found => found.map(k => layer.tested[k]));
    rule = chosen.rule;
  }
  causes = leading(causes);
  inhibitors = leading(inhibitors);
  if (layer.statistics && !causes.length) rule = "none";
  if (edges) {
    const chosen = select(edges.statistics, selection), kept = new Set([...chosen.causes, ...chosen.inhibitors]);
    edges = {...edges, kept: edges.sources.map((_, k) => kept.has(k))};
  }
  return {...layer, effects, causes, inhibitors, rule, edges};
}

function refilter(graph, selection) {
  const known = new Map(), layers = [];
  for (const old of graph.layers) {
    const above = layers.length && known.has(old.target_layer) ? known.get(old.target_layer) : null;
    const layer = refilterLayer(old, selection, above);
    layers.push(layer);
    if (!known.has(layer.source_layer)) known.set(layer.source_layer, new Set());
    layer.causes.forEach(node => known.get(layer.source_layer).add(node));
  }
  return {...graph, layers, mode: selection.mode, selection};
}

function compare(here, there) {
  // [layer, shared, only here, only there, Jaccard index] of the causes; nodes that were not tested are left out
  const tested = graph => graph.layers.filter(layer => layer.statistics);
  const causes = (graph, name) => tested(graph).filter(l => l.layer === name).flatMap(l => l.causes);
  const names = [...new Set([...tested(here), ...tested(there)].map(layer => layer.layer))];
  return names.map(name => {
    const a = new Set(causes(here, name)), b = new Set(causes(there, name));
    const shared = [...a].filter(node => b.has(node)).length, whole = a.size + b.size - shared;
    return [name, shared, a.size - shared, b.size - shared, whole ? shared / whole : 0];
  });
}

// ------------------------------------------------------------------------------------------------- layout

function place(graph) {
  const top = graph.layers[0].target_layer;
  const spaces = [...new Set([top, ...graph.layers.map(layer => layer.source_layer)])];
  const found = new Map(spaces.map(space => [space, new Map()]));
  graph.layers[0].effects.forEach(node => found.get(top).set(node, {rank: 0, layer: "", effect: NaN, share: NaN}));
  for (const layer of graph.layers) {
    const causes = new Set(layer.causes), inhibitors = new Set(layer.inhibitors), s = layer.statistics;
    layer.tested.forEach((node, k) => {
      const cause = layer.rule === "input" ? "input" : "cause";
      const role = causes.has(node) ? cause : inhibitors.has(node) ? "inhibitor" : "tested";
      const effect = s ? number(s.mean_d[k]) : NaN;
      const entry = {rank: RANK[role], layer: layer.layer, effect, share: s ? effect / (scaleOf(s) || 1) : NaN};
      const old = found.get(layer.source_layer).get(node);
      const wins = !old || entry.rank < old.rank || (entry.rank === old.rank && size(entry.share) > size(old.share));
      if (wins) found.get(layer.source_layer).set(node, entry);
    });
  }
  const rows = [], nodes = [], places = new Map();
  spaces.forEach((space, y) => {
    const entries = [...found.get(space)];
    const strongest = entries.sort((a, b) => a[1].rank - b[1].rank || size(b[1].share) - size(a[1].share));
    const listed = strongest.slice(0, DATA.most).sort((a, b) => a[0] - b[0]);
    const layers = graph.layers.filter(layer => layer.source_layer === space);
    const of = role => new Set(layers.flatMap(layer => layer[role])).size;
    rows.push({space, layers: layers.map(layer => layer.layer), causes: space === top ? listed.length : of("causes"),
               tested: layers.some(layer => layer.statistics) ? entries.length : 0, inhibitors: of("inhibitors"),
               hidden: entries.length - listed.length, fallback: layers.some(layer => layer.rule === "fallback")});
    const step = Math.min(DATA.spread, 1 / Math.max(1, listed.length));
    listed.forEach(([node, entry], k) => {
      const x = 0.5 + step * (k - (listed.length - 1) / 2);
      nodes.push({space, node, role: ROLES[entry.rank], x, y, ...entry});
      places.set(`${space}/${node}`, {x, y});
    });
  });
  const most = Math.floor(DATA.most_edges / graph.layers.length);
  return {rows, nodes, edges: graph.layers.flatMap(layer => edgesOf(layer, places, most))};
}

function edgesOf(layer, places, most) {
  // an edge that was cut alone has its own share, the others divide that of their node by the norms of their weights
  const s = layer.statistics, scale = s ? scaleOf(s) || 1 : 1, found = [], alone = new Map();
  const source = node => `${layer.source_layer}/${node}`, target = effect => `${layer.target_layer}/${effect}`;
  const listed = new Set(layer.effects.filter(effect => places.has(target(effect))));
  if (layer.edges) {
    layer.edges.sources.forEach((node, k) => alone.set(`${node}>${layer.edges.targets[k]}`, k));
  }
  for (const node of [...layer.causes, ...layer.inhibitors]) {
    if (!places.has(source(node))) continue;
    const own = [];
    let whole = 0;
    for (const effect of layer.effects) {
      const k = layer.edges ? alone.get(`${node}>${effect}`) : undefined, weight = norm(layer, node, effect);
      if (k !== undefined) {
        const share = number(layer.edges.statistics.mean_d[k]) / scale;
        if (layer.edges.kept[k] && listed.has(effect)) found.push({node, effect, share, refined: true});
      } else if (weight !== 0) {
        own.push([effect, weight || 0]);  // NaN, where no norms are stored, weighs nothing
        whole += weight || 0;
      }
    }
    const share = s ? number(s.mean_d[layer.rowOf.get(node)]) / scale : NaN;
    for (const [effect, weight] of own) {
      if (!listed.has(effect)) continue;
      found.push({node, effect, share: share * (whole > 0 ? weight / whole : 1 / own.length), refined: false});
    }
  }
  found.sort((a, b) => size(a.share) - size(b.share));  // the strongest last, on top
  return found.slice(-most).map(edge => {
    const ends = {source: source(edge.node), target: target(edge.effect)};
    return {layer: layer.layer, ...ends, from: places.get(ends.source), to: places.get(ends.target), ...edge};
  });
}
