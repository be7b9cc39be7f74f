// The page: summary, all layers, one layer.

const data = JSON.parse(document.getElementById("data").textContent);
const model = data.model, layers = data.layers;
const byId = (id) => document.getElementById(id);
const FEATURES = {
  expert_output: "average outputs", expert_output_tokens: "outputs on sampled tokens", router_logits: "router logits", weight: "weights",
  cka: "outputs (1 − CKA)", weight_cka: "weights (1 − CKA)",
};
const sum = (values) => values.reduce((total, value) => total + value, 0);
const mean = (values) => sum(values) / values.length;
const heldOut = (layer) => (layer.held_out && layer.held_out.every(known) ? layer.held_out : null);

// The weights of all layers together with K experts a layer.
function sizeAt(K) {
  if (!known(model.output_bytes) || model.kept >= model.experts) return null;
  return model.bytes - ((model.experts - K) * (model.bytes - model.output_bytes)) / (model.experts - model.kept);
}

function sharedTexts() {
  const models = data.evaluation && data.evaluation.models;
  if (!models || models.length < 2) return null;
  return { before: models[0], after: models[models.length - 1] };
}

// ---- summary

function card(name, value, detail, share) {
  return html("dl", { class: "card" }, html("dt", { text: name }), html("dd", {}, html("div", { class: "value" }, ...value)),
    share === undefined ? null : html("dd", {}, html("div", { class: "meter", role: "img", "aria-label": `${percent(share)} are left` }, html("span", { style: `width:${Math.max(0, Math.min(100, 100 * share))}%` }))),
    html("dd", { class: "detail", text: detail }));
}
// "6.1 → 3.7 MB": a unit that both have stands once.
const change = (from, to) => {
  const [unit, other] = [from, to].map((text) => String(text).split(" ").slice(1).join(" "));
  return [html("span", { class: "from", text: `${unit && unit === other ? String(from).split(" ")[0] : from} → ` }), String(to)];
};
const brief = (share) => `${Number((100 * share).toPrecision(2))} %`;

function fillSummary() {
  byId("program").textContent = `${data.program} report`;
  byId("title").textContent = `${model.name}: ${model.experts} → ${model.kept} experts a layer`;
  const parts = [model.family, count(model.layers, "layer"), `top-${model.top_k} routing`, `method ${data.recipe.method}`];
  if (model.output) parts.push(`output ${model.output}`);
  byId("subtitle").textContent = parts.join(" · ");
  const cards = byId("cards");
  if (known(model.output_bytes)) {
    const share = model.output_bytes / model.bytes;
    cards.append(card("Weights", change(bytes(model.bytes), bytes(model.output_bytes)), share <= 1 ? `${percent(1 - share)} smaller` : `${percent(share - 1)} larger`, share));
  }
  cards.append(card("Experts a layer", change(model.experts, model.kept), `in ${count(model.moe_layers, "MoE layer")}`, model.kept / model.experts));
  const errors = layers.map(heldOut).filter((pair) => pair);
  if (errors.length) {
    cards.append(card("Output error of a block", change(brief(mean(errors.map((pair) => pair[0]))), brief(mean(errors.map((pair) => pair[1])))),
      "on held-out tokens, before and after fitting; mean over layers"));
  } else if (layers.some((layer) => known(layer.output_error))) {
    cards.append(card("Output error of a block", [brief(mean(layers.map((layer) => layer.output_error).filter(known)))], "predicted on sampled tokens, mean over layers"));
  }
  const both = sharedTexts();
  const texts = both && both.before.perplexity && both.after.perplexity ? [both.before.perplexity[0], both.after.perplexity[0]] : null;
  if (texts && texts[0] && texts[1]) {
    const [before, after] = texts, ratio = after.perplexity / before.perplexity - 1;
    cards.append(card("Perplexity", change(short(before.perplexity), short(after.perplexity)), `${ratio < 0 ? "−" : "+"}${percent(Math.abs(ratio))} on ${after.file}`));
    if (after.top1_agreement) {
      cards.append(card("Same next token", [percent(after.top1_agreement.value)], `of places; KL divergence ${short(after.kl_divergence.value)} nats`));
    }
  }
  if (both && both.before.mean && both.after.mean && both.after.mean.acc) {
    cards.append(card("Accuracy", change(both.before.mean.acc.value.toFixed(3), both.after.mean.acc.value.toFixed(3)),
      `mean over ${count(both.after.tasks.length, "task")}, ± ${known(both.after.mean.acc.standard_error) ? both.after.mean.acc.standard_error.toFixed(3) : "–"}`));
  }
  const run = data.run;
  if (run.seconds && known(run.seconds.total)) {
    const memory = run.peak_memory_bytes ? `, at most ${bytes(Math.max(...run.peak_memory_bytes))} a rank` : "";
    cards.append(card("Time", [seconds(run.seconds.total)], `${count(run.ranks, "rank")}${memory}`));
  }
  const n = cards.childNodes.length;
  cards.style.setProperty("--columns", n <= 6 ? n : Math.ceil(n / 2));
  for (const sentence of data.facts) byId("facts").append(html("li", { text: sentence }));
  for (const sentence of data.advice) byId("advice").append(html("li", { text: sentence }));
  if (!data.advice.length) byId("advice").append(html("li", { text: "Nothing stands out." }));
  for (const note of data.notes) byId("notes").append(html("p", { class: "note", text: note }));
  byId("footer").textContent = `Made by ${data.program} from statistics of ${layers.length} layers. This file loads nothing from the network.`;
}

const withError = (estimate, digits) => {
  if (!estimate || !known(estimate.value)) return ["–"];
  return [estimate.value.toFixed(digits), known(estimate.standard_error) ? html("span", { class: "error", text: ` ± ${estimate.standard_error.toFixed(digits)}` }) : ""];
};

function fillQuality() {
  const models = data.evaluation && data.evaluation.models;
  if (!models || !models.length) return;
  byId("quality").hidden = false;
  const first = models[0], last = models[models.length - 1], parent = byId("quality-figures");
  const rowsOf = (lines) => html("tbody", {}, ...lines.map(([name, ...cells]) => html("tr", {}, html("td", { text: name }), ...cells.map((cell) => html("td", {}, ...cell)))));
  const table = (title, lines) => html("table", {}, html("thead", {}, html("tr", {}, html("th", { scope: "col", text: title }),
    ...models.map((entry) => html("th", { scope: "col", text: `${entry.name}, ${count(entry.experts, "expert")}` })))), rowsOf(lines));
  const texts = html("div", { class: "panel scroll", role: "region", "aria-label": "Measured on texts", tabindex: "0" }, html("h3", { text: "On texts" }));
  (first.perplexity || []).forEach((text, t) => {
    const each = models.map((entry) => (entry.perplexity || [])[t] || {});
    texts.append(table(text.file, [
      ["Perplexity", ...each.map((m) => withError({ value: m.perplexity, standard_error: m.perplexity_standard_error }, 3))],
      ["KL divergence from the original, nats", ...each.map((m, i) => (i === 0 ? ["0"] : withError(m.kl_divergence, 4)))],
      ["Places where both find the same token the likeliest", ...each.map((m, i) => (i === 0 ? ["1"] : withError(m.top1_agreement, 4)))],
    ]), html("p", { class: "readout", text: `${text.tokens} tokens in windows of ${text.length}; ± one standard error.` }));
  });
  if (first.perplexity && first.perplexity.length) parent.append(texts);
  if (!first.tasks || !first.tasks.length) return;
  const value = (entry, t, key) => ((entry.tasks || [])[t] || {})[key];
  const panel = html("div", { class: "panel" });
  parent.append(panel);
  if (models.length > 1) {
    const rows = first.tasks.map((task, t) => ({ name: task.name, from: task.acc, to: value(last, t, "acc") }));
    if (rows.length > 1) rows.push({ name: "mean", from: first.mean.acc, to: (last.mean || {}).acc, strong: true });
    const shownRows = rows.filter(({ from, to }) => from && to && known(from.value) && known(to.value));
    figure(panel, "On questions", `Accuracy: ring ${first.name}, dot ${last.name}; bars: one standard error.`, "Point at a task, or use the arrow keys.", (holder, readout, width) => {
      pairChart(holder, readout, width, { rows: shownRows, names: [first.name, last.name], label: `Accuracy on ${count(first.tasks.length, "task")}, ${first.name} and ${last.name}` });
    });
  }
  const all = [["acc", "Accuracy"], ["acc_norm", "Accuracy, normalised by length"]].map(([key, name]) => table(name, [
    ...first.tasks.map((task, t) => [`${task.name} (${task.items} questions)`, ...models.map((entry) => withError(value(entry, t, key), 3))]),
    ["mean", ...models.map((entry) => withError((entry.mean || {})[key], 3))],
  ]));
  panel.append(html("details", { open: models.length < 2 || null }, html("summary", { text: "All numbers" }), html("div", { class: "scroll" }, ...all)));
}

// ---- all layers

// The height of the last merge that leaves K clusters.
const heightAt = (layer, K) => (K < layer.experts ? layer.tree[layer.experts - K - 1][2] : 0);

function sweepOf(some) {
  const E = some[0].experts, mostly = some.filter((layer) => layer.spread && layer.experts === E);
  const curves = [], panels = [];
  const average = (pick) => {
    const lists = some.map(pick).filter((list) => list && list.length), ks = new Map();
    for (const list of lists) for (const [K, value] of list) ks.set(K, [...(ks.get(K) || []), value]);
    return [...ks].filter((entry) => lists.length === some.length && entry[1].length === lists.length).map(([K, values]) => [K, mean(values)]).sort((a, b) => a[0] - b[0]);
  };
  const pruned = some.every((layer) => layer.dropped), lost = average((layer) => (layer.kept_share || []).map(([K, share]) => [K, Math.max(0, 1 - share)]));
  const predicted = average((layer) => layer.output_errors);
  const spread = mostly.length ? Array.from({ length: E }, (_, i) => [i + 1, mean(mostly.map((layer) => layer.spread[i]))]) : [];
  if (predicted.length) panels.push({ name: "Predicted error of the block's output", key: "predicted error", format: percent, curves: [{ points: predicted }] });
  if (pruned && lost.length) panels.push({ name: "Router's choices without their expert", key: "choices lost", format: percent, curves: [{ points: lost }] });
  if (!pruned && spread.length) panels.push({ name: "Differences inside clusters", key: "differences inside clusters", format: percent, curves: [{ points: spread }] });
  const one = (layer) => layer.tree_source === "plan" && layer.feature === some[0].feature && layer.metric === some[0].metric;
  if (some.every(one)) {
    const heights = Array.from({ length: E }, (_, i) => [i + 1, mean(some.map((layer) => heightAt(layer, i + 1)))]);
    panels.push({ name: "Cut height (distance of the last merge)", key: "cut height", format: short, curves: [{ points: heights, second: true }] });
  }
  return panels;
}

function drawSweep(parent, some, title, caption, knee) {
  const E = some[0].experts, K = some[0].clusters.length, panels = sweepOf(some);
  if (!panels.length) return;
  const marks = [{ K, name: `${K} kept`, kind: "cut" }];
  if (knee && knee !== K && !some.some((layer) => layer.dropped)) marks.push({ K: knee, name: `bend at ${knee}`, kind: "knee" });
  figure(parent, title, caption, "Point at the curve, or use the arrow keys, for each number of experts.", (holder, readout, width) => {
    curveChart(holder, readout, width, {
      panels, marks, first: 1, last: E, label: `${title}: ${panels.map((panel) => panel.key).join(", ")} against the number of experts from 1 to ${E}; ${K} are kept`,
      panelHeight: panels.length > 2 ? 118 : 138,
      words: (k) => {
        const at = Math.max(1, Math.min(E, k)), size = sizeAt(at);
        const parts = panels.map((panel) => {
          const point = panel.curves[0].points.find((entry) => entry[0] === at);
          return point ? `${panel.key} ${panel.format(point[1])}` : null;
        }).filter((part) => part);
        return `${count(at, "expert")}${size ? ` (weights ${bytes(size)})` : ""}: ${parts.join(", ") || "not computed"}`;
      },
    });
  });
}

let selectLayer = () => {};
function fillOverview() {
  const parent = clear(byId("overview-figures"));
  const fitted = layers.some(heldOut), predicted = layers.some((layer) => known(layer.output_error));
  const rows = layers.map((layer) => {
    const pair = heldOut(layer), way = layer.method ? `; ${layer.method}` : "", inside = layer.cluster_spreads ? sum(layer.cluster_spreads) : null;
    if (fitted) {
      return { from: pair && pair[0], to: pair && pair[1], label: layer.layer,
        words: `Layer ${layer.layer}: ${pair ? `output error ${percent(pair[0])} as merged or pruned, ${percent(pair[1])} after fitting` : "not measured"}${way}` };
    }
    if (predicted) return { to: layer.output_error, label: layer.layer, words: `Layer ${layer.layer}: predicted output error ${percent(layer.output_error)}` };
    return { to: inside, label: layer.layer, words: `Layer ${layer.layer}: ${percent(inside)} of the differences are inside clusters` };
  });
  const errors = html("div", { class: "panel" }), sweep = html("div", { class: "panel" });
  if (rows.some((row) => known(row.to))) parent.append(errors);
  if (sweepOf(layers).length) parent.append(sweep);
  if (errors.parentNode) {
    const title = fitted ? "Output error of each block" : predicted ? "Predicted output error of each block" : "Differences inside clusters";
    const caption = fitted ? "Relative error on held-out tokens: ring as merged or pruned, dot after fitting. Lower is better."
      : predicted ? "Relative error of the block's output on sampled tokens, before anything is fitted. Lower is better."
        : "What the members of a cluster differ by, as a share of what all experts of the layer differ by. Lower is better.";
    figure(errors, title, caption, "Point at a layer, or use the arrow keys; click or Enter shows it below.", (holder, readout, width) => {
      selectLayer = layerChart(holder, readout, width, { rows, format: percent, label: `${title}, for ${layers.length} layers`, current: shown, choose: (i) => show(i, true), height: [260, 260, 330, 440][Math.min(3, sweepOf(layers).length)] });
    });
  }
  if (sweep.parentNode) drawSweep(sweep, layers, "What another number of experts would do", "Mean over the layers, from the statistics alone: no model was run for it. Point for the size of the weights.", data.knee);
}

// ---- one layer

function wordsOf(layer) {
  const sizes = layer.clusters.map((cluster) => cluster.members.length), K = sizes.length, parts = [];
  if (layer.dropped) parts.push(`${K} of ${layer.experts} experts are kept, ${layer.dropped.length} are dropped`);
  else if (layer.soft) parts.push(`every one of ${K} new experts is a weighted mean of all ${layer.experts}; an expert is shown where its weight is largest`);
  else {
    const alone = sizes.filter((size) => size === 1).length;
    parts.push(`${layer.experts} experts became ${K}: the largest cluster has ${Math.max(...sizes)}, ${count(alone, "expert stays", "experts stay")} alone`);
  }
  if (layer.method) parts.push(`chosen by auto: ${layer.method}`);
  const pair = heldOut(layer);
  if (pair) parts.push(`output error ${percent(pair[0])}, after fitting ${percent(pair[1])}`);
  if (known(layer.output_error)) parts.push(`predicted output error ${percent(layer.output_error)} before fitting, on ${layer.sampled_tokens} sampled tokens`);
  const text = parts.join("; ");
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

function mapCaption(layer) {
  const what = `${FEATURES[layer.feature] || layer.feature}${layer.metric ? `, ${layer.metric} distance` : ""}`;
  if (layer.tree_source === "plan" && layer.order_of_tree) {
    return `Distances of ${what}; ${layer.linkage} linkage. Thick branches and frames: merged. The dashed line is the cut.`;
  }
  const none = layer.soft || layer.clusters.some((cluster) => cluster.members.length > 1)
    ? "This plan has no merge tree. Experts stand cluster by cluster; frames are clusters."
    : "This method has no merge tree. The one shown (average linkage) only puts similar experts side by side; solid marks below: kept, striped: dropped.";
  return `Distances of ${what}${layer.compared_by_plan ? "" : ", which this method does not look at"}. ${none}`;
}

function drawMapFigure(layer) {
  const parent = clear(byId("map-figure"));
  if (!layer.distances) {
    parent.append(html("h3", { text: "Distances" }), html("p", { text: "There are no statistics of this layer in the work folder." }));
    return;
  }
  const title = layer.tree_source === "plan" && layer.order_of_tree ? "Merge tree and distances" : "Distances between experts";
  figure(parent, title, mapCaption(layer), "Point at two experts, or move with the arrow keys.", (holder, readout, width) => {
    drawMap(holder, readout, width, layer);
    readout.before(scaleBar(layer, Math.min(width, 380)));
  });
}

function drawUsage(parent, layer) {
  const found = clusterOf(layer), total = sum(layer.usage), position = new Map(layer.order.map((expert, i) => [expert, i]));
  const shares = layer.usage.map((value) => (total ? value / total : 0));
  // Clusters in the order of the map, so that both figures can be read from left to right.
  const clusters = layer.clusters.map((cluster, k) => ({ k, cluster, at: Math.min(...cluster.members.map((expert) => position.get(expert)), layer.experts) })).sort((a, b) => a.at - b.at);
  const rank = new Map(clusters.map((entry, i) => [entry.k, i]));
  const before = layer.order.map((expert) => ({
    value: shares[expert], label: String(expert), hatched: found[expert] === null, group: found[expert] === null ? 0 : rank.get(found[expert]),
    words: `Expert ${expert}: ${percent(shares[expert])} of the router's choices (${layer.usage[expert]} tokens), ${found[expert] === null ? "dropped" : `now in cluster ${found[expert]}`}`,
  }));
  const after = clusters.map(({ k, cluster }, i) => ({
    value: layer.usage_after[k], label: String(k), group: i,
    words: `New expert ${k} (${cluster.members.length === 1 ? "expert" : "experts"} ${cluster.members.join(", ") || "none"}): ${percent(layer.usage_after[k])} of the choices`,
  }));
  figure(parent, "Usage before", `Share of the router's choices, expert by expert in the order of the map. ${layer.dropped ? "Striped: dropped. " : "Shades alternate between clusters. "}Dashed: all alike.`,
    "Point at a bar, or use the arrow keys.", (holder, readout, width) => {
      barChart(holder, readout, width, { bars: before, even: { value: 1 / layer.experts }, format: percent, label: "Usage of each expert before", axis: "original experts" });
    });
  const how = layer.usage_measured ? "The new router on the sampled tokens."
    : layer.dropped ? "What went to the kept experts before; where the tokens of dropped ones go is not known." : "What went to the members before.";
  figure(parent, "Usage after", `Share of the choices, new expert by new expert. ${how}`, "Point at a bar, or use the arrow keys.", (holder, readout, width) => {
    barChart(holder, readout, width, { bars: after, even: { value: 1 / after.length }, format: percent, label: "Usage of each new expert", axis: "new experts" });
  });
}

function drawSizes(parent, layer) {
  clear(parent);
  const sizes = layer.clusters.map((cluster, k) => ({ size: cluster.members.length, k })).sort((a, b) => b.size - a.size || a.k - b.k);
  if (layer.dropped || sizes[0].size < 2) return;
  const panel = html("div", { class: "panel" });
  parent.append(panel);
  figure(panel, "Cluster sizes", "Experts in each cluster, largest first.", "Point at a bar, or use the arrow keys.", (holder, readout, width) => {
    const bars = sizes.map(({ size, k }) => ({ value: size, label: String(k), group: 0, words: `Cluster ${k}: ${count(size, "expert")} (${layer.clusters[k].members.join(", ")})` }));
    barChart(holder, readout, width, { bars, format: short, label: `Sizes of ${bars.length} clusters`, axis: "clusters", height: 130 });
  });
}

function tableOf(title, head, rows, open, chosen) {
  return html("details", { class: "panel", open: open || null }, html("summary", { text: title }),
    html("div", { class: "table scroll", role: "region", "aria-label": title, tabindex: "0" },
      html("table", {}, html("thead", {}, html("tr", {}, ...head.map((text) => html("th", { scope: "col", text })))),
        html("tbody", {}, ...rows.map((row, r) => html("tr", { class: r === chosen ? "chosen" : null }, ...row.map((cell) => html("td", { class: String(cell).length > 24 ? "wide" : null, text: cell }))))))));
}

function fillTables(layer) {
  const parent = clear(byId("layer-tables"));
  if (layer.scores) {
    const chosen = layer.scores.findIndex((score) => score.method === layer.method);
    parent.append(tableOf("What auto tried: output error on held-out tokens", ["candidate", "as merged or pruned", "after the first steps", "after all steps", ""],
      layer.scores.map((score, i) => [score.method, percent(score.start_error), percent(score.first_error), percent(score.error), i === chosen ? "✓ stays" : ""]), true, chosen));
  }
  if (layer.steps) {
    parent.append(tableOf("Steps of the reconstruction", ["step", "error after it", "", "seconds"],
      layer.steps.map((step) => [step.step, percent(step.error), step.kept ? "kept" : "undone", short(step.seconds)])));
  }
  const total = layer.usage ? sum(layer.usage) : 0;
  parent.append(tableOf(layer.dropped ? "Experts that were kept" : "Clusters", ["new expert", "members", "most used", "usage before", "usage after", "share of the differences"],
    layer.clusters.map((cluster, k) => [k, cluster.members.map((expert, i) => (cluster.weights ? `${expert} (${percent(cluster.weights[i])})` : expert)).join(", ") || "–", cluster.dominant,
      layer.usage ? percent(total ? sum(cluster.members.map((expert) => layer.usage[expert])) / total : 0) : "–", layer.usage ? percent(layer.usage_after[k]) : "–",
      layer.cluster_spreads ? percent(layer.cluster_spreads[k]) : "–"])));
  if (layer.dropped) parent.lastChild.append(html("p", { text: `Dropped: ${layer.dropped.join(", ")}.` }));
}

let shown = 0;
function fillLayer() {
  const layer = layers[shown];
  byId("layer-title").textContent = `Layer ${layer.layer}`;
  put(byId("layer-words"), { text: wordsOf(layer) });
  byId("layers").value = String(shown);
  byId("previous").disabled = shown === 0;
  byId("next").disabled = shown + 1 === layers.length;
  drawMapFigure(layer);
  const side = clear(byId("layer-figures"));
  const sweep = html("div", { class: "panel" });
  side.append(sweep);
  const where = layer.tree_source === "reference" && !layer.dropped ? "Of the cuts of an average-linkage tree, since this method makes none." : "From the statistics alone; nothing is run.";
  drawSweep(sweep, [layer], "Other numbers of experts, this layer", where, layer.knee);
  if (!sweep.childNodes.length) sweep.remove();
  drawSizes(byId("layer-sizes"), layer);
  if (layer.usage) {
    const usage = html("div", { class: "panel stack" });
    side.append(usage);
    drawUsage(usage, layer);
  }
  fillTables(layer);
}

function show(index, scroll) {
  const next = Math.max(0, Math.min(layers.length - 1, index));
  shown = next;
  selectLayer(shown);
  fillLayer();
  try { history.replaceState(null, "", `#layer-${layers[shown].layer}`); } catch { /* a page inside another */ }
  if (scroll) byId("layer").scrollIntoView({ block: "start" });
}

function fillPicker() {
  layers.forEach((layer, i) => {
    const pair = heldOut(layer);
    byId("layers").append(html("option", { value: i, text: `Layer ${layer.layer}${layer.method ? `, ${layer.method}` : ""}${pair ? `, error ${percent(pair[1])}` : ""}` }));
  });
  byId("layers").addEventListener("change", (event) => show(Number(event.target.value)));
  byId("previous").addEventListener("click", () => show(shown - 1));
  byId("next").addEventListener("click", () => show(shown + 1));
  const wanted = layers.findIndex((layer) => location.hash === `#layer-${layer.layer}`);
  if (wanted >= 0) shown = wanted;
}

function fillRecipe() {
  const list = html("dl", { class: "pairs" });
  const flat = (prefix, value) => {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) for (const [key, inner] of Object.entries(value)) flat(prefix ? `${prefix}.${key}` : key, inner);
    else list.append(html("div", {}, html("dt", { text: prefix }), html("dd", { text: Array.isArray(value) ? value.join(", ") || "none" : String(value) })));
  };
  flat("", data.recipe);
  byId("recipe").append(html("h3", { text: "Recipe" }), list);
  if (!data.run.seconds) return;
  const times = html("dl", { class: "pairs" });
  for (const [stage, value] of Object.entries(data.run.seconds)) times.append(html("div", {}, html("dt", { text: stage }), html("dd", { text: seconds(value) })));
  byId("recipe").append(html("h3", { style: "margin-top:18px", text: "Time" }), times);
}

// ---- light and dark

const dark = window.matchMedia("(prefers-color-scheme: dark)");
let theme = null; // what the reader chose
function setTheme(forced) {
  const now = forced || theme || (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now;
  byId("theme").textContent = now === "dark" ? "☀ Light" : "☾ Dark";
  byId("theme").setAttribute("aria-label", `Switch to ${now === "dark" ? "light" : "dark"} colours`);
}
dark.addEventListener("change", () => setTheme());
byId("theme").addEventListener("click", () => {
  theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  setTheme();
});
window.addEventListener("beforeprint", () => {
  setTheme("light");
  for (const details of document.querySelectorAll("details")) details.open = true;
});
window.addEventListener("afterprint", () => setTheme());

function drawAll() {
  clear(byId("quality-figures"));
  fillQuality();
  fillOverview();
  fillLayer();
}

setTheme();
fillSummary();
fillPicker();
fillRecipe();
drawAll();
let drawn = document.documentElement.clientWidth, waiting = 0;
window.addEventListener("resize", () => {
  if (document.documentElement.clientWidth === drawn) return;
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    drawn = document.documentElement.clientWidth;
    drawAll();
  }, 120);
});
