// The models of this server, a form for each, and what comes back.
// Text from the server or the user becomes text nodes only, never markup.

import { select, shown, showAttention } from "./attention.js";

const WHOLE = 400_000; // weights that are asked for at once; of more, one layer at a time
const FIRST_VALUES = 8;

const byId = (id) => document.getElementById(id);
let token = ""; // kept here and nowhere else
let chosen = null; // the model that is shown
let runs = []; // the answers for each text
let number = 0; // of the newest request; answers to older ones are dropped

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function say(message, isError = false) {
  byId("status").textContent = message;
  byId("status").classList.toggle("error", isError);
}

async function call(method, path, content) {
  const headers = { Accept: "application/json" };
  if (content !== undefined) headers["Content-Type"] = "application/json";
  if (token) headers.Authorization = `Bearer ${token}`;
  const body = content === undefined ? undefined : JSON.stringify(content);
  const response = await fetch(path, { method, headers, body, cache: "no-store", credentials: "omit" });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401) byId("token").focus();
  throw new Error(answer.error ?? `the server answered ${response.status}`);
}

const pathOf = (model) =>
  `v2/models/${encodeURIComponent(model.name)}/versions/${encodeURIComponent(model.version)}`;

// Run `work`; a failure is told on the page.
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    say(error instanceof TypeError ? "The server does not answer." : error.message, true);
  }
}

// ---- models

async function list() {
  say("");
  const about = await call("GET", "v2");
  byId("server").textContent = `version ${about.version}`;
  const index = await call("POST", "v2/repository/index", {});
  const items = index.map((entry) => {
    const ready = entry.state === "READY";
    const state = `version ${entry.version}, ${entry.state.toLowerCase()}`;
    const button = element(
      "button",
      { type: "button", disabled: !ready, title: entry.reason },
      entry.name,
      element("small", { className: ready ? "ready" : "" }, state),
    );
    button.addEventListener("click", () => attempt(() => open(entry, button)));
    return element("li", {}, button);
  });
  byId("models").replaceChildren(...items);
  const wanted = decodeURIComponent(location.hash.slice(1));
  const ready = items.map((item) => item.firstChild).filter((button) => !button.disabled);
  const first = ready.find((button) => button.firstChild.textContent === wanted) ?? ready[0];
  if (first) first.click();
  else say("No model is ready.");
}

async function open(entry, button) {
  const mine = ++number;
  for (const other of byId("models").querySelectorAll("button")) other.removeAttribute("aria-current");
  button.setAttribute("aria-current", "true");
  for (const id of ["model", "result", "attention"]) byId(id).hidden = true;
  say("");
  const config = await call("GET", `${pathOf(entry)}/config`);
  if (mine !== number) return;
  history.replaceState(null, "", `#${encodeURIComponent(entry.name)}`);
  const told = (key) => config.parameters[key]?.string_value ?? "";
  const plain = ({ name, data_type, dims }) => {
    const type = data_type.slice("TYPE_".length);
    return { name, datatype: type === "STRING" ? "BYTES" : type, shape: dims };
  };
  const inputs = config.input.map(plain);
  const outputs = config.output.map(plain);
  const layers = told("pyattn.attention_layers").split(",").filter(Boolean).map(Number);
  const weights = layers.map((layer) => `attention_weights_${layer}`);
  chosen = {
    name: entry.name,
    version: entry.version,
    inputs,
    layers,
    heads: layers.length ? Math.max(outputs.find((output) => output.name === weights[0]).shape[1], 1) : 0,
    outputs: outputs.filter((output) => !weights.includes(output.name)),
  };
  const takesText = told("pyattn.tokenizer") !== "" && inputs.every((input) => filled(input, []));
  describe(inputs, outputs, takesText, layers.length);
  byId("text-form").hidden = !takesText;
  byId("tensor-form").hidden = takesText;
  if (!takesText) drawFields();
}

function describe(inputs, outputs, takesText, layers) {
  byId("model-name").textContent = chosen.name;
  byId("model-about").textContent = [
    `version ${chosen.version}`,
    takesText ? "takes text" : "takes tensors",
    layers ? `shows the attention of ${layers} ${layers === 1 ? "layer" : "layers"}` : "",
  ].filter(Boolean).join(", ");
  const rows = [["input", inputs], ["output", outputs]].flatMap(([kind, tensors]) =>
    tensors.map(({ name, datatype, shape }) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, kind),
        ...[name, datatype, `[${shape.join(", ")}]`].map((text) => element("td", {}, text)),
      ),
    ),
  );
  byId("tensors").replaceChildren(...rows);
  byId("model").hidden = false;
}

// ---- text

// The entry of an input of a text model, or null for an input that text says nothing about.
function filled({ name, datatype, shape }, ids) {
  const values = {
    input_ids: () => ids,
    attention_mask: () => ids.map(() => 1),
    token_type_ids: () => ids.map(() => 0),
    position_ids: () => ids.map((_, index) => index),
  }[name];
  if (!values || shape.length !== 2 || !/^INT(32|64)$/.test(datatype)) return null;
  return { name, datatype, shape: [1, ids.length], data: values() };
}

async function runText() {
  const first = byId("text-0").value;
  const second = byId("text-1").value;
  const text = second.trim() ? [first, second] : [first];
  const mine = ++number;
  say("Running…");
  const start = performance.now();
  const { ids, tokens } = await call("POST", `${pathOf(chosen)}/tokenize`, { text });
  const found = await Promise.all(
    ids.map((row, index) =>
      run(chosen.inputs.map((input) => filled(input, row)), text[index], tokens[index]),
    ),
  );
  if (mine !== number) return;
  runs = found;
  const counts = tokens.map((row) => `${row.length} tokens`).join(" and ");
  say(`${counts}, ${Math.round(performance.now() - start)} ms`);
  show();
}

// ---- tensors

function drawFields() {
  const sets = chosen.inputs.map(({ name, datatype, shape }, index) => {
    const sizes = shape.map((size) => (size === -1 ? 1 : size));
    const zero = { BOOL: false, BYTES: "" }[datatype] ?? 0;
    const count = sizes.reduce((a, b) => a * b, 1);
    const data = JSON.stringify(Array(Math.min(count, 4096)).fill(zero));
    return element(
      "fieldset",
      {},
      element("legend", {}, `${name} `, element("span", { className: "muted" }, `${datatype} [${shape.join(", ")}]`)),
      element(
        "div",
        { className: "row" },
        element("label", {}, "Shape", element("input", { id: `shape-${index}`, value: JSON.stringify(sizes), spellcheck: false })),
        element("label", {}, "Data, nested or flat", element("textarea", { id: `data-${index}`, value: data, rows: 2, spellcheck: false })),
      ),
    );
  });
  byId("fields").replaceChildren(...sets);
  drawCurl();
}

// The inputs as they stand in the form; raises Error for a field that is not JSON.
function readFields() {
  return chosen.inputs.map(({ name, datatype }, index) => {
    const read = (id) => {
      try {
        return JSON.parse(byId(`${id}-${index}`).value);
      } catch {
        throw new Error(`The ${id} of ${name} is not JSON.`);
      }
    };
    return { name, datatype, shape: read("shape"), data: read("data") };
  });
}

function drawCurl() {
  try {
    const quoted = JSON.stringify({ inputs: readFields() }).replaceAll("'", "'\\''");
    const access = token ? ' -H "Authorization: Bearer $TOKEN"' : "";
    const url = new URL(`${pathOf(chosen)}/infer`, location.href.split("#")[0]);
    byId("curl").textContent = `curl ${url}${access} -H 'Content-Type: application/json' -d '${quoted}'`;
  } catch (error) {
    byId("curl").textContent = error.message;
  }
}

async function runTensors() {
  const inputs = readFields();
  const mine = ++number;
  say("Running…");
  const start = performance.now();
  const found = await run(inputs, "", null);
  if (mine !== number) return;
  runs = [found];
  say(`${Math.round(performance.now() - start)} ms`);
  show();
}

// ---- results

// Run the model; with attention outputs all layers, or the one that is shown if they are large.
async function run(inputs, text, tokens) {
  const outputs = chosen.outputs.map(({ name }) => ({ name }));
  if (!chosen.layers.length) {
    const answer = await call("POST", `${pathOf(chosen)}/infer`, { inputs });
    return { inputs, text, tokens, outputs: answer.outputs, layers: new Map() };
  }
  const size = tokens ? tokens.length ** 2 : Math.max(...inputs.map((input) => input.shape[1] ?? 1)) ** 2;
  const all = size * chosen.heads * chosen.layers.length <= WHOLE;
  const layers = all ? chosen.layers : [chosen.layers.find((layer) => layer === shown().layer) ?? chosen.layers[0]];
  const answer = await call("POST", `${pathOf(chosen)}/attention`, {
    inputs,
    parameters: { layers },
    ...(outputs.length ? { outputs } : {}),
  });
  const found = new Map(answer.layers.map((layer) => [layer.layer, layer]));
  return { inputs, text, tokens: tokens ?? answer.tokens?.[0] ?? null, outputs: answer.outputs ?? [], layers: found };
}

function show() {
  const blocks = runs.flatMap(({ text, outputs }, index) =>
    outputs.map(({ name, datatype, shape, data }) => {
      const values = data.slice(0, FIRST_VALUES).map((x) => (Number.isInteger(x) || typeof x !== "number" ? String(x) : x.toFixed(4)));
      const more = data.length > values.length ? ", …" : "";
      const which = runs.length > 1 ? `, text ${index + 1}` : "";
      return element(
        "div",
        { title: text },
        element("p", { className: "label" }, `${name}${which}: ${datatype} [${shape.join(", ")}]`),
        element("p", { className: "values mono" }, values.join(", ") + more),
      );
    }),
  );
  byId("outputs").replaceChildren(...blocks);
  byId("result").hidden = blocks.length === 0;
  const alike = runs.length === 2 ? similarity(...runs.map((each) => each.outputs[0])) : null;
  byId("similarity").hidden = alike === null;
  if (alike !== null) {
    byId("similarity-value").textContent = alike.toFixed(4);
    byId("similarity-meter").value = Math.max(alike, 0);
  }
  byId("attention").hidden = !chosen.layers.length;
  if (!chosen.layers.length) return;
  options("which", runs.map((each, index) => [index, `${index + 1}: ${each.text}`.slice(0, 60)]));
  byId("which").parentElement.hidden = runs.length < 2;
  options("layer", chosen.layers.map((layer) => [layer, layer]));
  options("head", Array.from({ length: [...runs[0].layers.values()][0].shape[1] }, (_, i) => [i, i]));
  look(0);
}

// The cosine of two embeddings, or null where the outputs are not one vector each.
function similarity(a, b) {
  const fit = (x) => x && x.shape.length === 2 && x.shape[0] === 1 && x.datatype.startsWith("FP");
  if (!fit(a) || !fit(b)) return null;
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const norms = Math.sqrt(dot(a.data, a.data) * dot(b.data, b.data));
  return norms > 0 ? dot(a.data, b.data) / norms : null;
}

function options(id, entries) {
  byId(id).replaceChildren(...entries.map(([value, text]) => element("option", { value }, String(text))));
}

function look(index) {
  byId("which").value = index;
  const { layers, tokens } = runs[index];
  if ([...layers.values()].some(({ shape }) => shape.includes(0))) {
    byId("attention").hidden = true; // no tokens, no map
    return;
  }
  showAttention(layers, tokens);
}

async function choose() {
  const each = runs[Number(byId("which").value)];
  const [layer, head] = ["layer", "head"].map((id) => Number(byId(id).value));
  if (!each.layers.has(layer)) {
    const mine = ++number;
    const before = byId("status").textContent;
    say("Running…");
    const parameters = { layers: [layer] };
    const answer = await call("POST", `${pathOf(chosen)}/attention`, { inputs: each.inputs, parameters });
    if (mine !== number) return;
    each.layers = new Map([[layer, answer.layers[0]]]);
    say(before);
    showAttention(each.layers, each.tokens);
  }
  select(layer, head);
}

function download(blob, ending) {
  const { layer, head } = shown();
  const name = ending === "png" ? `${chosen.name}-layer-${layer}-head-${head}.png` : `${chosen.name}-attention.json`;
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function downloadJson() {
  const { text, tokens, layers } = runs[Number(byId("which").value)];
  const content = { model_name: chosen.name, model_version: chosen.version, text, tokens, layers: [...layers.values()] };
  download(new Blob([JSON.stringify(content)], { type: "application/json" }), "json");
}

// ---- events

function onSubmit(id, work) {
  byId(id).addEventListener("submit", async (event) => {
    event.preventDefault();
    await attempt(work);
  });
}

onSubmit("text-form", runText);
onSubmit("tensor-form", runTensors);
onSubmit("access", async () => {
  token = byId("token").value.trim();
  await list();
});
byId("tensor-form").addEventListener("input", drawCurl);
byId("text-form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("text-form").requestSubmit();
});
byId("copy").addEventListener("click", () =>
  attempt(async () => {
    await navigator.clipboard.writeText(byId("curl").textContent);
    say("Copied.");
  }),
);
byId("which").addEventListener("change", () => look(Number(byId("which").value)));
for (const id of ["layer", "head"]) byId(id).addEventListener("change", () => attempt(choose));
byId("png").addEventListener("click", () => byId("map").toBlob((blob) => download(blob, "png")));
byId("json").addEventListener("click", downloadJson);

attempt(list);
