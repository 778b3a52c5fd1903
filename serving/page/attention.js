// The maps of attention: thumbnails of all heads, one heat map, and the tokens it is about.

const CELL_MOST = 34;
const CELL_LEAST = 2; // beyond that the map scrolls
const CURSOR_LEAST = 8;
const THUMBNAIL_MOST = 32; // cells along a side
const LABEL_LEAST = 10; // pixels of a cell that has a label
const LABEL_LENGTH = 14; // characters

const byId = (id) => document.getElementById(id);
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// What is shown. `layers` maps a number to {heads, shape: [1, H, T, S], weights}.
let view = { layers: new Map(), layer: 0, head: 0, query: 0, key: 0, tokens: null };
let geometry = { left: 0, top: 0, cell: 1 };

// The colours of the style sheet, from 0 to 1, as 256 times red, green and blue.
function colours() {
  const stops = [0, 1, 2, 3, 4].map((i) => {
    const hex = variable(`--map-${i}`);
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  });
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((c, k) => c + (stops[low + 1][k] - c) * (at - low));
  });
}

// One head as an array with its sizes and largest weight.
function headOf(layer, head) {
  const { heads, shape, weights } = view.layers.get(layer);
  const [, , T, S] = shape;
  const start = heads.indexOf(head) * T * S;
  const values = weights.slice(start, start + T * S);
  return { T, S, values, most: values.reduce((a, b) => Math.max(a, b), 0) };
}

// The head with blocks of weights replaced by their largest, for a picture that is smaller than it.
function pooled(head) {
  const step = Math.ceil(Math.max(head.T, head.S) / THUMBNAIL_MOST);
  if (step <= 1) return head;
  const [T, S] = [head.T, head.S].map((size) => Math.ceil(size / step));
  const values = Array(T * S).fill(0);
  head.values.forEach((value, i) => {
    const at = Math.floor(Math.floor(i / head.S) / step) * S + Math.floor((i % head.S) / step);
    values[at] = Math.max(values[at], value);
  });
  return { T, S, values, most: head.most };
}

// A canvas with one pixel for each weight, or `canvas` made into one.
function picture({ T, S, values, most }, table, canvas = document.createElement("canvas")) {
  canvas.width = S;
  canvas.height = T;
  const context = canvas.getContext("2d");
  const image = context.createImageData(S, T);
  values.forEach((value, i) => {
    const colour = table[Math.round(most > 0 ? (255 * value) / most : 0)];
    image.data.set([...colour, 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

function label(index, size) {
  const token = view.tokens?.length === size ? view.tokens[index] : null;
  return token ?? String(index);
}

function shortened(text) {
  return text.length > LABEL_LENGTH ? `${text.slice(0, LABEL_LENGTH - 1)}…` : text;
}

export function showAttention(layers, tokens) {
  const numbers = [...layers.keys()];
  const layer = layers.has(view.layer) ? view.layer : numbers[0];
  const { heads } = layers.get(layer);
  const head = heads.includes(view.head) ? view.head : heads[0];
  view = { layers, layer, head, query: 0, key: 0, tokens };
  drawThumbnails();
  drawTokens();
  select(layer, head);
}

export function shown() {
  return { layer: view.layer, head: view.head };
}

function drawThumbnails() {
  const table = colours();
  const rows = [...view.layers].map(([layer, { heads }]) => {
    const row = document.createElement("div");
    for (const head of heads) {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("role", "radio");
      button.setAttribute("aria-label", `Layer ${layer}, head ${head}`);
      button.title = `Layer ${layer}, head ${head}`;
      button.dataset.layer = layer;
      button.dataset.head = head;
      button.append(picture(pooled(headOf(layer, head)), table));
      button.addEventListener("click", () => select(layer, head));
      row.append(button);
    }
    return row;
  });
  byId("heads").replaceChildren(...rows);
  byId("heads-label").textContent =
    rows.length > 1 ? "Layers from top to bottom, heads from left to right" : "Heads from left to right";
}

function drawTokens() {
  const [, , T, S] = view.layers.get(view.layer).shape;
  const usable = T === S;
  byId("tokens").hidden = byId("tokens-label").hidden = !usable;
  const items = Array.from({ length: usable ? S : 0 }, (_, index) => {
    const item = document.createElement("li");
    item.textContent = label(index, S);
    item.addEventListener("pointerenter", () => point(index, view.key));
    return item;
  });
  byId("tokens").replaceChildren(...items);
}

export function select(layer, head) {
  view.layer = layer;
  view.head = head;
  for (const button of byId("heads").querySelectorAll("button")) {
    const chosen = Number(button.dataset.layer) === layer && Number(button.dataset.head) === head;
    button.setAttribute("aria-checked", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
  }
  byId("layer").value = layer;
  byId("head").value = head;
  byId("map").setAttribute(
    "aria-label",
    `Attention of layer ${layer}, head ${head}; the arrow keys move over queries and keys`,
  );
  point(view.query, view.key);
}

// Make one weight the current one: outlined in the map, named below it, and its row on the tokens.
function point(query, key) {
  const head = headOf(view.layer, view.head);
  view.query = Math.min(Math.max(query, 0), head.T - 1);
  view.key = Math.min(Math.max(key, 0), head.S - 1);
  drawMap(head);
  const weight = head.values[view.query * head.S + view.key];
  const names = [label(view.query, head.T), label(view.key, head.S)];
  byId("readout").textContent =
    `Query ${names[0]} (${view.query}) → key ${names[1]} (${view.key}): ${weight.toFixed(4)}`;
  byId("tokens-label").textContent = `What ${names[0]} (${view.query}) attends to`;
  [...byId("tokens").children].forEach((item, index) => {
    const share = head.values[view.query * head.S + index] / (head.most || 1);
    item.style.setProperty("--weight", `${Math.round(100 * share)}%`);
    item.classList.toggle("strong", share > 0.6);
    item.classList.toggle("query", index === view.query);
  });
}

function drawMap(head) {
  const { T, S } = head;
  const canvas = byId("map");
  const context = canvas.getContext("2d");
  const font = (size) => `${size}px ${getComputedStyle(document.body).fontFamily}`;
  context.font = font(12);
  const widest = (size) => {
    const widths = Array.from({ length: size }, (_, i) => context.measureText(shortened(label(i, size))).width);
    return Math.ceil(Math.max(...widths)) + 10;
  };
  const room = byId("map-frame").clientWidth;
  let left = widest(T);
  let top = widest(S);
  let cell = Math.min(CELL_MOST, Math.floor((room - left - 2) / S));
  if (cell < LABEL_LEAST) {
    left = top = 2;
    cell = Math.max(CELL_LEAST, Math.min(LABEL_LEAST - 1, Math.floor((room - 4) / S)));
  }
  geometry = { left, top, cell };
  const width = left + S * cell + 2;
  const height = top + T * cell + 2;
  const scale = Math.min(window.devicePixelRatio || 1, 4096 / Math.max(width, height));
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  context.scale(scale, scale);
  context.fillStyle = variable("--ground"); // so that a saved picture has it, too
  context.fillRect(0, 0, width, height);
  context.imageSmoothingEnabled = false;
  const table = colours();
  context.drawImage(picture(head, table), left, top, S * cell, T * cell);
  if (cell >= LABEL_LEAST) drawLabels(context, head, font);
  const size = Math.max(cell, CURSOR_LEAST);
  const corner = (start, index) => start + (index + 0.5) * cell - size / 2;
  for (const [colour, thickness] of [["--ground", 4], ["--cursor", 2]]) {
    context.strokeStyle = variable(colour); // two, to be seen on any cell
    context.lineWidth = thickness;
    context.strokeRect(corner(left, view.key), corner(top, view.query), size, size);
  }
  picture({ T: 1, S: 256, values: Array.from({ length: 256 }, (_, i) => i), most: 255 }, table, byId("scale"));
  byId("most").textContent = `${head.most.toFixed(3)}, the largest weight of this head`;
}

function drawLabels(context, { T, S }, font) {
  const { left, top, cell } = geometry;
  const write = (index, size, chosen) => {
    context.font = `${chosen ? "600 " : ""}${font(Math.min(12, cell))}`;
    context.fillStyle = variable(chosen ? "--ink" : "--muted");
    context.fillText(shortened(label(index, size)), 0, 0);
  };
  context.textBaseline = "middle";
  for (let query = 0; query < T; query++) {
    context.save();
    context.textAlign = "right";
    context.translate(left - 6, top + (query + 0.5) * cell);
    write(query, T, query === view.query);
    context.restore();
  }
  for (let key = 0; key < S; key++) {
    context.save();
    context.translate(left + (key + 0.5) * cell, top - 6);
    context.rotate(-Math.PI / 2);
    write(key, S, key === view.key);
    context.restore();
  }
}

const STEPS = {
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  Home: [0, -Infinity],
  End: [0, Infinity],
  PageUp: [-Infinity, 0],
  PageDown: [Infinity, 0],
};

function step(event) {
  const found = event.ctrlKey || event.altKey || event.metaKey ? undefined : STEPS[event.key];
  if (found) event.preventDefault();
  return found;
}

byId("map").addEventListener("keydown", (event) => {
  const moved = step(event);
  if (moved) point(view.query + moved[0], view.key + moved[1]);
});

function follow(event) {
  const key = Math.floor((event.offsetX - geometry.left) / geometry.cell);
  const query = Math.floor((event.offsetY - geometry.top) / geometry.cell);
  const [, , T, S] = view.layers.get(view.layer).shape;
  const inside = query >= 0 && query < T && key >= 0 && key < S;
  if (inside && (query !== view.query || key !== view.key)) point(query, key);
}

byId("map").addEventListener("pointermove", follow);
byId("map").addEventListener("pointerdown", follow);

byId("heads").addEventListener("keydown", (event) => {
  const moved = step(event);
  if (!moved) return;
  const layers = [...view.layers.keys()];
  const { heads } = view.layers.get(view.layer);
  const clamp = (at, list) => list[Math.min(Math.max(at, 0), list.length - 1)];
  select(
    clamp(layers.indexOf(view.layer) + moved[0], layers),
    clamp(heads.indexOf(view.head) + moved[1], heads),
  );
  byId("heads").querySelector('[aria-checked="true"]').focus();
});

const redraw = () => {
  if (view.layers.size === 0) return;
  drawThumbnails();
  select(view.layer, view.head);
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.addEventListener("resize", () => view.layers.size && point(view.query, view.key));
