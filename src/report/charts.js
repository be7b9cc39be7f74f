"use strict";
// Figures as inline SVG. Whatever comes from the data is put in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = String(value).replace(/(\d) (%|[KMGT]?B\b)/g, "$1\u00a0$2"); // a unit stays with its number
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children || []) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const html = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);
const clear = (node) => { node.replaceChildren(); return node; };

// Numbers for people.
const known = (value) => typeof value === "number" && Number.isFinite(value);
const percent = (share) => {
  if (!known(share)) return "–";
  const value = 100 * share, size = Math.abs(value);
  return `${value.toFixed(size === 0 || size >= 99.95 ? 0 : size >= 9.95 ? 1 : size >= 0.095 ? 2 : 3)} %`;
};
const percentTick = (share) => `${Number((100 * share).toPrecision(3))} %`;
const short = (value) => (known(value) ? String(Number(value.toPrecision(3))) : "–");
const bytes = (value) => {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 999.5 && unit + 1 < units.length) { value /= 1000; unit++; }
  return `${unit === 0 ? value : value.toFixed(value < 99.95 ? 1 : 0)} ${units[unit]}`;
};
const seconds = (value) => {
  if (value < 59.5) return `${value.toFixed(value < 9.95 ? 1 : 0)} s`;
  value = Math.round(value);
  if (value < 3600) return `${Math.floor(value / 60)} min ${String(value % 60).padStart(2, "0")} s`;
  return `${Math.floor(value / 3600)} h ${String(Math.floor(value / 60) % 60).padStart(2, "0")} min`;
};
const count = (n, one, several) => `${n} ${n === 1 ? one : several || one + "s"}`;

// Round values from 0 to at least `top`.
function ticks(top, most = 4) {
  if (!(top > 0)) return [0, 1];
  const raw = top / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999) * power;
  const values = [];
  do values.push(Number((values.length * step).toPrecision(12))); while (values[values.length - 1] < top * 0.999);
  return values;
}

// At most `most` of the whole numbers first .. last, both ends among them.
function wholeTicks(first, last, most) {
  const step = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500].find((s) => (last - first) / s < most) || 1000;
  const values = [first];
  for (let v = Math.ceil((first + 1) / step) * step; v < last; v += step) if (v - first >= step * 0.6 && last - v >= step * 0.6) values.push(v);
  if (last > first) values.push(last);
  return values;
}

// A figure whose items can be read out: by pointing at them, or with the arrow keys when it has the focus.
// items: how many; read(i): the words for one; at(x, y): the item there, in pixels of the figure; show(i): marks it; choose(i): Enter, click.
function readable(holder, readout, { items, read, at, show, choose, columns }) {
  let current = -1;
  const go = (i) => {
    current = Math.max(0, Math.min(items - 1, i));
    show(current);
    readout.textContent = read(current);
  };
  holder.tabIndex = 0;
  holder.addEventListener("pointermove", (event) => {
    const box = holder.getBoundingClientRect(), i = at(event.clientX - box.left, event.clientY - box.top);
    if (i >= 0) go(i);
  });
  holder.addEventListener("pointerdown", (event) => {
    const box = holder.getBoundingClientRect(), i = at(event.clientX - box.left, event.clientY - box.top);
    if (i < 0) return;
    go(i);
    if (choose) choose(i);
  });
  holder.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const row = columns || 1;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row };
    if (event.key in steps) go(current < 0 ? 0 : current + steps[event.key]);
    else if (event.key === "Home") go(0);
    else if (event.key === "End") go(items - 1);
    else if ((event.key === "Enter" || event.key === " ") && choose && current >= 0) choose(current);
    else return;
    event.preventDefault();
  });
}

// A titled figure with a place for what is pointed at. draw(holder, readout, width) fills the holder.
function figure(parent, title, caption, hint, draw) {
  const readout = html("output", { class: "readout", text: hint });
  const holder = html("div", { class: "map" });
  const box = html("figure", {}, html("h3", { text: title }), caption && html("figcaption", { text: caption }), holder, readout);
  parent.append(box);
  draw(holder, readout, Math.max(220, Math.floor(holder.clientWidth)));
  return box;
}

function frame(width, height, label) {
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
}

function verticalAxis(root, values, y, left, right, format) {
  for (const value of values) {
    root.append(svg("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }));
    root.append(svg("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end", text: format(value) }));
  }
}

// Diagonal stripes: what a colour alone would say is also a pattern.
let patterns = 0;
function stripes(root) {
  const id = `stripes-${patterns++}`;
  root.append(svg("defs", {}, svg("pattern", { id, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("line", { class: "stripe", x1: 0, y1: 0, x2: 0, y2: 6 }))));
  return `url(#${id})`;
}

// bars: [{ value, group, hatched, label, words }]. even: a value with a dashed line and its name.
function barChart(holder, readout, width, { bars, even, format, label, axis, height = 150 }) {
  const left = 52, right = width - 6, top = 10, step = (right - left) / bars.length;
  const named = step >= 17 || (step >= 11 && bars.every((bar) => bar.label.length < 3));
  const bottom = height - (named ? 34 : 20), root = frame(width, height, label);
  const scale = ticks(Math.max(...bars.map((bar) => bar.value), even ? even.value : 0, 1e-12), 3);
  const y = (value) => bottom - (value / scale[scale.length - 1]) * (bottom - top);
  const gap = step > 8 ? Math.min(6, step * 0.22) : step > 2.5 ? 0.6 : 0;
  verticalAxis(root, scale, y, left, right, format === percent ? percentTick : format);
  const hatch = stripes(root);
  bars.forEach((bar, i) => {
    const x = left + i * step + gap / 2, w = Math.max(0.7, step - gap), h = Math.max(bar.value > 0 ? 1 : 0, bottom - y(bar.value));
    root.append(svg("rect", { class: bar.hatched ? null : `after${bar.group % 2 ? " other" : ""}`, fill: bar.hatched ? hatch : null, x, y: bottom - h, width: w, height: h }));
    if (named) {
      root.append(svg("text", { x: x + w / 2, y: bottom + 14, "text-anchor": "middle", style: step < 17 ? "font-size:10px" : null, text: bar.label }));
    }
  });
  if (even) root.append(svg("line", { class: "even", x1: left, x2: right, y1: y(even.value), y2: y(even.value) }));
  root.append(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  root.append(svg("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle", text: axis }));
  const cursor = svg("rect", { class: "cursor", y: top, height: bottom - top, width: Math.max(step, 2), visibility: "hidden" });
  root.append(cursor);
  holder.append(root);
  readable(holder, readout, {
    items: bars.length,
    read: (i) => bars[i].words,
    at: (x) => (x < left || x > right ? -1 : Math.min(bars.length - 1, Math.floor((x - left) / step))),
    show: (i) => { cursor.setAttribute("x", left + i * step); cursor.setAttribute("visibility", "visible"); },
  });
}

// Curves over K. panels: [{ name, format, curves: [{ name, points: [[K, value]], second }] }]. marks: [{ K, name, kind }].
function curveChart(holder, readout, width, { panels, marks, first, last, label, words, panelHeight = 150 }) {
  const left = 52, right = width - 14, gap = 30, head = 20;
  const height = head + panels.length * (panelHeight + gap) + 1;
  const x = (K) => (last === first ? (left + right) / 2 : left + ((K - first) / (last - first)) * (right - left));
  const root = frame(width, height, label);
  panels.forEach((panel, p) => {
    const top = head + p * (panelHeight + gap), bottom = top + panelHeight - 8;
    const scale = ticks(Math.max(1e-12, ...panel.curves.flatMap((curve) => curve.points.map((point) => point[1]))), 3);
    const y = (value) => bottom - (value / scale[scale.length - 1]) * (bottom - top - 12);
    root.append(svg("text", { class: "strong", x: width < 420 ? 0 : left, y: top - 4, text: panel.name }));
    verticalAxis(root, scale, y, left, right, panel.format === percent ? percentTick : panel.format);
    for (const mark of marks) root.append(svg("line", { class: mark.kind, x1: x(mark.K), x2: x(mark.K), y1: top + 2, y2: bottom }));
    for (const curve of panel.curves) {
      const d = curve.points.map(([K, value], i) => `${i ? "L" : "M"}${x(K).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      root.append(svg("path", { class: curve.second ? "curve second" : "curve", d }));
      for (const [K, value] of curve.points) {
        if (curve.points.length > 40 && !marks.some((mark) => mark.K === K)) continue;
        root.append(svg("circle", { class: curve.second ? "dot second" : "dot", cx: x(K), cy: y(value), r: marks.some((mark) => mark.K === K) ? 4.5 : 2.6 }));
      }
    }
    root.append(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    if (p === 0) {
      marks.forEach((mark) => {
        const others = marks.filter((other) => other !== mark).map((other) => other.K);
        const end = x(mark.K) > right - 90 || (others.some((K) => K > mark.K) && x(mark.K) > left + 90);
        root.append(svg("text", { class: mark.kind === "cut" ? "marked" : null, x: x(mark.K) + (end ? -6 : 6), y: top + 10, "text-anchor": end ? "end" : "start", text: mark.name }));
      });
    }
    for (const K of wholeTicks(first, last, width / 46)) {
      root.append(svg("text", { x: x(K), y: bottom + 15, "text-anchor": "middle", text: K }));
    }
  });
  root.append(svg("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle", text: "experts kept in the layer" }));
  const cursor = svg("line", { class: "axis", y1: head, y2: height - gap - 6, visibility: "hidden" });
  root.append(cursor);
  holder.append(root);
  readable(holder, readout, {
    items: last - first + 1,
    read: (i) => words(first + i),
    at: (px) => (px < left - 8 || px > right + 8 ? -1 : Math.round(((px - left) / Math.max(1, right - left)) * (last - first))),
    show: (i) => {
      const at = x(first + Math.max(0, Math.min(last - first, i)));
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      cursor.setAttribute("visibility", "visible");
    },
  });
}

// A column a layer, from one value to another. rows: [{ from, to, label, words }]; `to` alone where nothing was fitted.
function layerChart(holder, readout, width, { rows, format, label, current, choose, height = 230 }) {
  const left = 56, right = width - 6, top = 12, bottom = height - 38;
  const root = frame(width, height, label);
  const scale = ticks(Math.max(...rows.flatMap((row) => [row.from || 0, row.to || 0]), 1e-12));
  const y = (value) => bottom - (value / scale[scale.length - 1]) * (bottom - top);
  const step = (right - left) / rows.length, middle = (i) => left + (i + 0.5) * step;
  const size = Math.max(1.8, Math.min(6.5, step * 0.28));
  const chosen = svg("rect", { class: "current", y: top - 6, height: bottom - top + 6, width: step });
  const cursor = svg("rect", { class: "cursor", y: top - 6, height: bottom - top + 6, width: step, visibility: "hidden" });
  root.append(chosen);
  verticalAxis(root, scale, y, left, right, format === percent ? percentTick : format);
  const every = Math.ceil(26 / step);
  rows.forEach((row, i) => {
    if (known(row.from)) {
      root.append(svg("line", { class: "link", x1: middle(i), x2: middle(i), y1: y(row.from) + size, y2: y(row.to) }));
      root.append(svg("circle", { class: "ring", cx: middle(i), cy: y(row.from), r: size }));
    }
    if (known(row.to)) root.append(svg("circle", { class: "dot", cx: middle(i), cy: y(row.to), r: size }));
    if (i % every === 0) root.append(svg("text", { x: middle(i), y: bottom + 16, "text-anchor": "middle", text: row.label }));
  });
  root.append(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }), cursor);
  root.append(svg("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle", text: "layer" }));
  holder.append(root);
  const select = (i) => chosen.setAttribute("x", left + i * step);
  select(current);
  readable(holder, readout, {
    items: rows.length,
    read: (i) => rows[i].words,
    at: (x) => (x < left || x > right ? -1 : Math.min(rows.length - 1, Math.floor((x - left) / step))),
    show: (i) => { cursor.setAttribute("x", left + i * step); cursor.setAttribute("visibility", "visible"); },
    choose,
  });
  return select;
}

// Rows of two values with their standard errors. rows: [{ name, from, to }] of { value, standard_error }.
function pairChart(holder, readout, width, { rows, label, names }) {
  const left = Math.min(150, width * 0.36), right = width - 16, line = 27, top = 6, height = top + rows.length * line + 24;
  const ends = rows.flatMap(({ from, to }) => [from, to].flatMap((e) => [e.value - (e.standard_error || 0), e.value + (e.standard_error || 0)]));
  const low = Math.max(0, Math.floor(Math.min(...ends) * 10) / 10), high = Math.min(1, Math.ceil(Math.max(...ends) * 10) / 10);
  const x = (value) => left + ((value - low) / Math.max(1e-9, high - low)) * (right - left);
  const root = frame(width, height, label);
  for (let value = low; value < high + 0.001; value += high - low > 0.55 ? 0.2 : 0.1) {
    root.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: height - 20 }));
    root.append(svg("text", { x: x(value), y: height - 5, "text-anchor": "middle", text: Number(value.toFixed(2)) }));
  }
  const cursor = svg("rect", { class: "cursor", x: 0, width, height: line, visibility: "hidden" });
  root.append(cursor);
  rows.forEach(({ name, from, to, strong }, i) => {
    const y = top + (i + 0.5) * line;
    const text = svg("text", { class: strong ? "strong" : null, x: left - 12, y: y + 4, "text-anchor": "end", text: name.length > 19 ? `${name.slice(0, 18)}…` : name });
    root.append(text, svg("line", { class: "link", x1: x(from.value), x2: x(to.value), y1: y, y2: y }));
    for (const [estimate, shift, kind] of [[from, -4, "whisker"], [to, 4, "whisker own"]]) {
      if (!known(estimate.standard_error)) continue;
      root.append(svg("line", { class: kind, x1: x(estimate.value - estimate.standard_error), x2: x(estimate.value + estimate.standard_error), y1: y + shift, y2: y + shift }));
    }
    root.append(svg("circle", { class: "ring", cx: x(from.value), cy: y, r: 5.5 }), svg("circle", { class: "dot", cx: x(to.value), cy: y, r: 5.5 }));
  });
  holder.append(root);
  const words = (e) => `${e.value.toFixed(3)}${known(e.standard_error) ? ` ± ${e.standard_error.toFixed(3)}` : ""}`;
  readable(holder, readout, {
    items: rows.length,
    read: (i) => `${rows[i].name}: ${words(rows[i].from)} ${names[0]}, ${words(rows[i].to)} ${names[1]}`,
    at: (px, py) => (py < top || py > top + rows.length * line ? -1 : Math.min(rows.length - 1, Math.floor((py - top) / line))),
    show: (i) => { cursor.setAttribute("y", top + i * line); cursor.setAttribute("visibility", "visible"); },
  });
}
