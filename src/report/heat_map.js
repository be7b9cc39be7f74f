// The distance heat map with its dendrogram.

// From alike to unlike: darkest to lightest in even steps of lightness, told apart by blue and yellow, so that no kind of colour blindness and
// no grey printer changes the order. Red, green, blue at even distances.
const SCALE = [[10, 26, 62], [35, 54, 101], [71, 84, 111], [103, 111, 119], [138, 139, 121], [177, 168, 108], [217, 200, 83], [253, 235, 78]];
function colour(share) {
  const at = Math.max(0, Math.min(1, share)) * (SCALE.length - 1), i = Math.min(SCALE.length - 2, Math.floor(at)), t = at - i;
  return SCALE[i].map((low, c) => Math.round(low + t * (SCALE[i + 1][c] - low)));
}

// A byte a pair of experts, in the order 0-1, 0-2, ..., 1-2, ...
function distancesOf(layer) {
  const text = atob(layer.distances.codes), E = layer.experts, { low, high } = layer.distances;
  const code = (e, f) => {
    const a = Math.min(e, f), b = Math.max(e, f);
    return a === b ? 0 : text.charCodeAt(a * E - (a * (a + 1)) / 2 + b - a - 1);
  };
  return { code, value: (e, f) => (e === f ? 0 : low + (code(e, f) / 255) * (high - low)) };
}

function paint(layer, order, distances, size) {
  const E = order.length, small = html("canvas", { width: E, height: E }), pixels = new ImageData(E, E);
  for (let i = 0; i < E; i++) {
    for (let j = 0; j < E; j++) {
      const [red, green, blue] = colour(i === j ? 0 : distances.code(order[i], order[j]) / 255);
      pixels.data.set([red, green, blue, 255], 4 * (i * E + j));
    }
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  const sharp = Math.max(1, Math.min(3, window.devicePixelRatio || 1));
  const canvas = html("canvas", { width: Math.round(size * sharp), height: Math.round(size * sharp), style: `width:${size}px;height:${size}px`, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = size * sharp < E;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// The height half way between the last merge that was made and the first that was not.
function cutHeight(layer) {
  const E = layer.experts, K = layer.clusters.length, heights = layer.tree.map((merge) => merge[2]);
  const below = K < E ? heights[E - K - 1] : 0;
  return K > 1 ? (below + heights[E - K]) / 2 : heights[heights.length - 1] * 1.05;
}

function dendrogram(layer, order, left, size, height) {
  const E = layer.experts, K = layer.clusters.length, own = layer.tree_source === "plan", cell = size / E;
  const top = Math.max(...layer.tree.map((merge) => merge[2]), 1e-300) * 1.06;
  const y = (h) => height - (h / top) * (height - 8);
  const root = frame(left + size, height, own ? `Merge tree of ${E} experts, cut into ${K} clusters` : `Tree of ${E} experts, for orientation`);
  const place = new Map(order.map((expert, i) => [expert, { x: left + (i + 0.5) * cell, h: 0 }]));
  layer.tree.forEach(([a, b, h], i) => {
    const one = place.get(a), two = place.get(b);
    const joined = own && i < E - K;
    root.append(svg("path", { class: joined ? "branch joined" : "branch", style: E > 100 ? `stroke-width:${joined ? 1.2 : 0.8}` : null, d: `M${one.x.toFixed(2)} ${y(one.h).toFixed(2)}V${y(h).toFixed(2)}H${two.x.toFixed(2)}V${y(two.h).toFixed(2)}` }));
    place.set(E + i, { x: (one.x + two.x) / 2, h });
  });
  for (const value of ticks(top / 1.06, 3)) {
    if (value > top) continue;
    root.append(svg("text", { x: left - 7, y: Math.min(height - 1, y(value) + 4), "text-anchor": "end", text: short(value) }));
    root.append(svg("line", { class: "axis", x1: left - 4, x2: left, y1: y(value), y2: y(value) }));
  }
  root.append(svg("line", { class: "axis", x1: left, x2: left, y1: y(top), y2: height }));
  if (own) {
    const cut = y(Math.min(top, cutHeight(layer)));
    root.append(svg("line", { class: "cut", x1: left, x2: left + size, y1: cut, y2: cut }));
  }
  return root;
}

// Where each expert went: "cluster 3", or null where it was dropped.
function clusterOf(layer) {
  const found = new Array(layer.experts).fill(null);
  layer.clusters.forEach((cluster, k) => cluster.members.forEach((expert) => { found[expert] = k; }));
  return found;
}

function drawMap(holder, readout, width, layer) {
  const E = layer.experts, order = layer.order, distances = distancesOf(layer), found = clusterOf(layer);
  const left = 46, cellSize = Math.min((width - left) / E, 44), size = Math.floor(cellSize * E), cell = size / E;
  const labelled = cell >= 12, tree = layer.tree && layer.order_of_tree, treeHeight = tree ? Math.round(Math.min(170, 90 + width / 8)) : 0;
  if (tree) holder.append(dendrogram(layer, order, left, size, treeHeight));
  const canvas = paint(layer, order, distances, size);
  canvas.style.marginLeft = `${left}px`;
  canvas.style.marginTop = tree ? "4px" : "0";
  const foot = labelled ? 24 : 14;
  canvas.style.marginBottom = `${foot}px`;
  holder.append(canvas);
  const overlay = frame(left + size, size + foot, `Distances between ${E} experts, in the order of the figure`);
  overlay.setAttribute("class", "overlay");
  overlay.style.top = `${treeHeight + (tree ? 4 : 0)}px`;
  const hatch = stripes(overlay);
  // Runs of neighbours in one cluster are framed; dropped experts have a striped mark.
  for (let i = 0, j = 0; i < E; i = j) {
    for (j = i + 1; j < E && found[order[i]] !== null && found[order[j]] === found[order[i]]; j++);
    if (found[order[i]] === null || j - i < 2) continue;
    const line = Math.min(1.6, Math.max(0.7, cell * 0.3));
    for (const [kind, stroke] of [["box under", 2 * line], ["box", line]]) {
      overlay.append(svg("rect", { class: kind, style: `stroke-width:${stroke}`, x: left + i * cell, y: i * cell, width: (j - i) * cell, height: (j - i) * cell }));
    }
  }
  const pruned = (layer.dropped || []).length > 0;
  order.forEach((expert, i) => {
    const name = labelled ? expert : "";
    if (labelled) overlay.append(svg("text", { x: left - 7, y: (i + 0.5) * cell + 4, "text-anchor": "end", class: pruned && found[expert] !== null ? "strong" : null, text: name }));
    if (labelled && (cell >= 15 || i % 2 === 0)) overlay.append(svg("text", { x: left + (i + 0.5) * cell, y: size + 17, "text-anchor": "middle", class: pruned && found[expert] !== null ? "strong" : null, style: cell < 17 ? "font-size:10px" : null, text: name }));
    if (found[expert] === null) overlay.append(svg("rect", { fill: hatch, x: left + i * cell, y: size + 2, width: cell, height: labelled ? 5 : 8 }));
    else if (pruned) overlay.append(svg("rect", { class: "after", x: left + i * cell + 0.5, y: size + 2, width: Math.max(0.6, cell - 1), height: labelled ? 5 : 8 }));
  });
  const cross = svg("rect", { class: "cross", width: Math.max(cell, 3), height: Math.max(cell, 3), visibility: "hidden" });
  overlay.append(cross);
  holder.append(overlay);
  const where = (expert) => (found[expert] === null ? "dropped" : layer.clusters[found[expert]].members.length > 1 ? `cluster ${found[expert]}` : "alone");
  readable(holder, readout, {
    items: E * E,
    columns: E,
    read: (i) => {
      const a = order[Math.floor(i / E)], b = order[i % E];
      return a === b ? `Expert ${a} (${where(a)})` : `Experts ${a} (${where(a)}) and ${b} (${where(b)}): distance ${short(distances.value(a, b))}`;
    },
    at: (x, y) => {
      const j = Math.floor((x - left) / cell), i = Math.floor((y - treeHeight - (tree ? 4 : 0)) / cell);
      return i < 0 || j < 0 || i >= E || j >= E ? -1 : i * E + j;
    },
    show: (i) => {
      cross.setAttribute("x", left + (i % E) * cell);
      cross.setAttribute("y", Math.floor(i / E) * cell);
      cross.setAttribute("visibility", "visible");
    },
  });
}

// The scale under the map: what is how far.
function scaleBar(layer, width) {
  const root = svg("svg", { width, height: 32, viewBox: `0 0 ${width} 32`, "aria-hidden": "true" }), length = Math.min(260, width - 120), left = 46, n = 32;
  for (let i = 0; i < n; i++) {
    root.append(svg("rect", { x: left + (i * length) / n, y: 2, width: length / n + 0.6, height: 10, fill: `rgb(${colour((i + 0.5) / n).join(" ")})` }));
  }
  root.append(svg("text", { x: left, y: 27, text: `${short(layer.distances.low)} alike` }));
  root.append(svg("text", { x: left + length, y: 27, "text-anchor": "end", text: `unlike ${short(layer.distances.high)}` }));
  return root;
}
