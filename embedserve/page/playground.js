"use strict";

const MOST_LINES = 300; // drawn; the API takes more
const MOST_NUMBERS = 16; // lines up to which the heat map starts as numbers
const MOST_TOKENS = 24; // lines up to which tokens start shown

const $ = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const state = { model: null, needsKey: false, running: null, result: null, cell: null };

// ---------------------------------------------------------------- elements

/** make("td", { className: "x" }, "text", child): text is never markup. */
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

function makeSvg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const shorten = (text, most) => {
  const letters = Array.from(text);
  return letters.length > most ? letters.slice(0, most - 1).join("").trimEnd() + "…" : text;
};
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const ms = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(1)} ms`;

// ---------------------------------------------------------------- server

class ServerError extends Error {
  constructor(status, error, requestId) {
    super(error.message);
    Object.assign(this, { status, code: error.code, param: error.param, requestId });
  }
}

/** Fetch from this server; ServerError holds the error object of the answer. */
async function ask(path, body, signal) {
  // location.origin: a page opened with a key in its URL may not fetch relative to it.
  const options = { signal, headers: { accept: "application/json" } };
  if (body) {
    options.method = "POST";
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(location.origin + path, options);
  if (response.ok) return response;
  const text = await response.text();
  let error;
  try {
    error = JSON.parse(text).error;
  } catch {
    error = null;
  }
  if (typeof error?.message !== "string") {
    error = { message: text.slice(0, 500) || response.statusText || "no message", code: null, param: null };
  }
  throw new ServerError(response.status, error, response.headers.get("x-request-id"));
}

async function loadModels() {
  const { data } = await (await ask("/v1/models")).json();
  $("model").replaceChildren(...data.map((name) => make("option", { value: name }, name)));
  $("model").disabled = false;
}

async function loadModel() {
  const name = $("model").value;
  const model = await (await ask("/v1/models/" + encodeURIComponent(name))).json();
  if (name !== $("model").value) return;
  state.model = model;
  const alias = model.alias ? `alias of ${model.alias.model} · ` : "";
  $("model-facts").textContent =
    `${alias}${model.dimension} dimensions · ${model.max_tokens.toLocaleString("en")} tokens · ` +
    `${model.pooling.join(" + ")} pooling · ${model.precision} on ${model.provider}`;
  showPrompts(model);
  showDimensions(model);
  showClient();
}

function showPrompts(model) {
  const names = Object.keys(model.prompts);
  const fixed = model.alias?.prompt_name;
  const byDefault = model.default_prompt_name;
  const first = byDefault ? `the model's default: ${byDefault}` : "none";
  const options = [make("option", { value: "" }, fixed ? `${fixed}: fixed by the alias` : first)];
  if (!fixed) options.push(...names.map((name) => make("option", { value: name }, name)));
  $("prompt").replaceChildren(...options);
  $("prompt").disabled = Boolean(fixed) || !names.length;
  showPrompt();
}

function showPrompt() {
  const { prompts, alias, default_prompt_name: byDefault } = state.model;
  const text = prompts[$("prompt").value || alias?.prompt_name || byDefault];
  const none = Object.keys(prompts).length ? "" : "This model has no prompts.";
  $("prompt-hint").textContent = text === undefined ? none : `Put before each text: “${text}”`;
}

function showDimensions(model) {
  const field = $("dimensions");
  const fixed = model.alias?.dimensions;
  const cuts = model.dimensions.length > 1 && !fixed;
  field.disabled = !cuts;
  field.max = model.dimension;
  field.value = fixed || model.dimension;
  $("dimension-list").replaceChildren(...model.dimensions.map((value) => make("option", { value })));
  $("dimensions-hint").textContent = fixed
    ? "The alias fixes the dimensions."
    : cuts ? `1 to ${model.dimension}; the model was trained for ${model.dimensions.join(", ")}.` : "";
  $("dimensions-hint").hidden = !$("dimensions-hint").textContent;
}

/** Whether clients need a key: a request without this browser's own is refused. */
async function findKeys() {
  try {
    const response = await fetch(location.origin + "/v1/models", { credentials: "omit" });
    state.needsKey = response.status === 401;
  } catch {
    state.needsKey = false;
  }
}

// ---------------------------------------------------------------- the request

/** [{ text, line }], `line` counted from 1 in the field; blank lines are left out. */
function readLines() {
  return $("lines").value.split("\n")
    .map((text, i) => ({ text: text.replace(/\r$/, ""), line: i + 1 }))
    .filter(({ text }) => text.trim());
}

function options() {
  const wanted = {};
  if ($("prompt").value) wanted.prompt_name = $("prompt").value;
  if ($("truncate").value) wanted.truncate = $("truncate").value;
  return wanted;
}

function readRequest(lines) {
  const request = { model: $("model").value, input: lines.map(({ text }) => text), ...options() };
  const dimensions = $("dimensions");
  if (!dimensions.disabled && dimensions.value !== String(state.model?.dimension)) {
    request.dimensions = dimensions.value === "" ? undefined : Number(dimensions.value);
  }
  return request;
}

async function embed() {
  const lines = readLines();
  if (!lines.length) return say("Type a text first.");
  if (lines.length > MOST_LINES) {
    return say(`${lines.length} lines; this page draws at most ${MOST_LINES}. The API takes more.`);
  }
  state.running?.abort();
  const running = (state.running = new AbortController());
  $("results").setAttribute("aria-busy", "true");
  say(`Embedding ${plural(lines.length, "line")}…`);
  try {
    if (!state.model) await start();
    const request = readRequest(lines);
    const { dimensions, ...tokenize } = request;
    const before = performance.now();
    const response = await ask("/v1/embeddings", { ...request, encoding_format: "base64" }, running.signal);
    const answer = await response.json();
    const total = performance.now() - before;
    const tokens = (await (await ask("/v1/tokenize", tokenize, running.signal)).json()).data;
    const rows = answer.data.map(({ embedding }) => floats(embedding));
    state.result = {
      lines, tokens, total, rows,
      limit: state.model.max_tokens,
      model: request.model,
      usage: answer.usage,
      dims: answer.data[0].dims,
      fingerprint: response.headers.get("x-embedding-fingerprint") ?? "",
      requestId: response.headers.get("x-request-id") ?? "",
      times: serverTiming(response.headers.get("server-timing") ?? ""),
      similarity: similarities(rows),
      projection: project(rows),
    };
    showResult();
    say(`${plural(lines.length, "line")} embedded in ${ms(total)}.`);
  } catch (error) {
    if (error.name !== "AbortError") showError(error, lines);
  } finally {
    if (state.running === running) $("results").removeAttribute("aria-busy");
  }
}

const say = (text) => { $("status").textContent = text; };

/** Base64 of little-endian float32 -> Float32Array. */
function floats(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** "tokenize;dur=0.3, queue;dur=0.1" -> { tokenize: 0.3, queue: 0.1 } */
function serverTiming(header) {
  const found = header.matchAll(/(\w+);dur=([\d.]+)/g);
  return Object.fromEntries(Array.from(found, ([, name, value]) => [name, Number(value)]));
}

// ---------------------------------------------------------------- mathematics

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Cosine of every two rows: [n][n]. */
function similarities(rows) {
  const norms = rows.map((row) => Math.sqrt(dot(row, row)) || 1);
  const out = rows.map(() => new Float64Array(rows.length));
  for (let i = 0; i < rows.length; i++) {
    for (let j = i; j < rows.length; j++) {
      out[i][j] = out[j][i] = i === j ? 1 : dot(rows[i], rows[j]) / (norms[i] * norms[j]);
    }
  }
  return out;
}

/**
 * Principal components 1 and 2: { points: [n][2], shares: [2] }. The centred rows' Gram matrix
 * (n, n) has the scores as eigenvectors, scaled by the root of the eigenvalue; simultaneous power
 * iteration from a fixed start, so that the same vectors give the same picture.
 */
function project(rows) {
  const n = rows.length;
  const gram = centredGram(rows);
  const trace = gram.reduce((sum, row, i) => sum + row[i], 0);
  if (n < 2 || trace < 1e-12) return { points: rows.map(() => [0, 0]), shares: [0, 0] };
  const vectors = [0, 1].map((k) => Float64Array.from({ length: n }, (_, i) => Math.sin((i + 1) * (k + 1.3))));
  let values = [0, 0];
  for (let step = 0; step < 600; step++) {
    const before = values;
    const next = vectors.map((vector) => gram.map((row) => dot(row, vector)));
    values = orthonormal(next);
    next.forEach((vector, k) => vectors[k].set(vector));
    const change = Math.abs(values[0] - before[0]) + Math.abs(values[1] - before[1]);
    if (step > 20 && change < 1e-12 * trace) break;
  }
  for (const vector of vectors) {
    const largest = vector.reduce((most, v) => (Math.abs(v) > Math.abs(most) + 1e-9 ? v : most), 0);
    if (largest < 0) vector.forEach((v, i) => { vector[i] = -v; });
  }
  const roots = values.map((value) => Math.sqrt(Math.max(0, value)));
  const points = rows.map((_, i) => [vectors[0][i] * roots[0], vectors[1][i] * roots[1]]);
  return { points, shares: values.map((value) => value / trace) };
}

function centredGram(rows) {
  const n = rows.length;
  const gram = rows.map(() => new Float64Array(n));
  for (let i = 0; i < n; i++) {
    for (let j = i; j < n; j++) gram[i][j] = gram[j][i] = dot(rows[i], rows[j]);
  }
  const means = gram.map((row) => row.reduce((a, b) => a + b, 0) / n);
  const mean = means.reduce((a, b) => a + b, 0) / n;
  return gram.map((row, i) => row.map((value, j) => value - means[i] - means[j] + mean));
}

/** Gram-Schmidt in place; returns the lengths, which converge to the eigenvalues. */
function orthonormal([first, second]) {
  const scale = (vector) => {
    const length = Math.sqrt(dot(vector, vector));
    vector.forEach((v, i) => { vector[i] = length > 1e-14 ? v / length : 0; });
    return length;
  };
  const one = scale(first);
  const along = dot(first, second);
  second.forEach((v, i) => { second[i] = v - along * first[i]; });
  return [one, scale(second)];
}

// ---------------------------------------------------------------- colours

// Blue for alike, orange for opposed, the ground for 0: told apart with every colour vision.
const RAMPS = {
  light: {
    up: [[244, 247, 250], [203, 221, 240], [140, 182, 222], [70, 131, 190], [29, 88, 150], [9, 45, 90]],
    down: [[244, 247, 250], [248, 216, 170], [232, 160, 76], [181, 98, 20], [112, 54, 4]],
  },
  dark: {
    up: [[27, 34, 42], [28, 55, 86], [36, 88, 140], [70, 137, 200], [133, 188, 236], [218, 237, 255]],
    down: [[27, 34, 42], [82, 49, 16], [150, 86, 20], [222, 146, 58], [255, 214, 160]],
  },
};

/** Similarity -> [r, g, b]; `span` is what the ends of the ramp mean. */
function colour(value, span) {
  const ramps = RAMPS[dark.matches ? "dark" : "light"];
  const part = span.stretched ? (value - span.low) / (span.high - span.low || 1) : value;
  const ramp = part < 0 && !span.stretched ? ramps.down : ramps.up;
  const at = Math.min(1, Math.max(0, Math.abs(span.stretched ? Math.max(0, part) : part))) * (ramp.length - 1);
  const i = Math.min(ramp.length - 2, Math.floor(at));
  return ramp[i].map((c, k) => Math.round(c + (ramp[i + 1][k] - c) * (at - i)));
}

/** Black or white, whichever has the larger WCAG contrast on the colour: 4.58 at least. */
function inkOn(rgb) {
  const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) ? "#000" : "#fff";
}

const css = (rgb) => `rgb(${rgb.join(" ")})`;

function colourSpan(similarity) {
  const n = similarity.length;
  let [low, high] = [Infinity, -Infinity];
  similarity.forEach((row, i) => row.forEach((value, j) => {
    if (i !== j) [low, high] = [Math.min(low, value), Math.max(high, value)];
  }));
  if (n < 2) [low, high] = [0, 1];
  return $("stretch").checked ? { stretched: true, low, high } : { stretched: false, low: Math.min(0, low), high: 1 };
}

// ---------------------------------------------------------------- heat map

const signed = (value, digits = 2) => {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? "−" + text : text;
};
const compact = (value) => signed(value).replace("0.", ".");

function showHeat() {
  const { similarity } = state.result;
  const span = colourSpan(similarity);
  const drawing = $("numbers").checked ? heatTable(similarity, span) : heatCanvas(similarity, span);
  $("heat").replaceChildren(drawing);
  showLegend(span);
  if (state.cell === null || Math.max(...state.cell) >= similarity.length) state.cell = widestPair(similarity);
  showCell(...state.cell);
}

/** The most similar two different lines. */
function widestPair(similarity) {
  let best = [0, 0];
  similarity.forEach((row, i) => row.forEach((value, j) => {
    if (j > i && (best[0] === best[1] || value > similarity[best[0]][best[1]])) best = [i, j];
  }));
  return best;
}

function heatTable(similarity, span) {
  const head = make("tr", {}, make("td"), ...similarity.map((_, j) => make("th", { scope: "col" }, String(j + 1))));
  const body = similarity.map((row, i) => {
    const cells = Array.from(row, (value, j) => {
      const rgb = colour(value, span);
      const cell = make("td", {}, compact(value));
      cell.style.background = css(rgb);
      cell.style.color = inkOn(rgb);
      cell.dataset.at = `${i},${j}`;
      return cell;
    });
    return make("tr", {}, make("th", { scope: "row" }, String(i + 1)), ...cells);
  });
  const table = make("table", { className: "heat" }, make("thead", {}, head), make("tbody", {}, ...body));
  const room = ($("heat").clientWidth - 36) / similarity.length - 2;
  table.style.setProperty("--side", `${Math.min(46, Math.max(26, Math.floor(room)))}px`);
  table.addEventListener("pointerover", (event) => {
    const at = event.target.dataset?.at;
    if (at) showCell(...at.split(",").map(Number));
  });
  return cursor(make("div", { className: "scroll" }, table), "table of numbers");
}

function heatCanvas(similarity, span) {
  const n = similarity.length;
  const side = Math.max(1, Math.floor(Math.min(560, $("heat").clientWidth || 400) / n));
  const canvas = make("canvas", { width: side * n, height: side * n });
  const context = canvas.getContext("2d");
  similarity.forEach((row, i) => row.forEach((value, j) => {
    context.fillStyle = css(colour(value, span));
    context.fillRect(j * side, i * side, side, side);
  }));
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (offset, length) => Math.min(n - 1, Math.max(0, Math.floor((offset / length) * n)));
    showCell(at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width));
  });
  return cursor(make("div", { className: "scroll" }, canvas), "heat map");
}

/** Arrow keys move over the pairs of lines. */
function cursor(element, kind) {
  element.tabIndex = 0;
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", `Similarities as a ${kind}; arrow keys move from pair to pair`);
  element.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const last = state.result.lines.length - 1;
    const [i, j] = state.cell.map((at, k) => Math.min(last, Math.max(0, at + step[k])));
    showCell(i, j);
    element.querySelector("td.on")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  return element;
}

function showCell(i, j) {
  const { similarity, lines } = state.result;
  state.cell = [i, j];
  $("heat").querySelector("td.on")?.classList.remove("on");
  $("heat").querySelector(`td[data-at="${i},${j}"]`)?.classList.add("on");
  const line = (k) => make("div", {}, make("b", {}, `${k + 1}  `), shorten(lines[k].text, 160));
  const value = make("div", {}, make("b", {}, signed(similarity[i][j], 4)), ` between ${i + 1} and ${j + 1}`);
  $("readout").replaceChildren(value, line(i), ...(i === j ? [] : [line(j)]));
  for (const point of $("plot").querySelectorAll("g[data-point]")) {
    point.classList.toggle("on", [String(i), String(j)].includes(point.dataset.point));
  }
}

function showLegend(span) {
  const context = $("legend").getContext("2d");
  for (let x = 0; x < 256; x++) {
    context.fillStyle = css(colour(span.low + (x / 255) * (span.high - span.low), span));
    context.fillRect(x, 0, 1, 1);
  }
  $("legend-low").textContent = signed(span.low);
  $("legend-high").textContent = signed(span.high);
}

// ---------------------------------------------------------------- scatter plot

const MARGIN = { left: 28, right: 14, top: 14, bottom: 28 };
const measure = document.createElement("canvas").getContext("2d");

function showPlot() {
  const { projection, lines } = state.result;
  const width = Math.max(280, $("plot").clientWidth);
  const { places, height } = place(projection.points, width);
  const svg = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": describePlot() });
  const inner = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
  svg.append(makeSvg("rect", { class: "frame", x: MARGIN.left, y: MARGIN.top, width: inner[0], height: inner[1], rx: 4 }));
  svg.append(makeSvg("text", { class: "axis", x: width - MARGIN.right, y: height - 9, "text-anchor": "end" }, "component 1 →"));
  svg.append(makeSvg("text", { class: "axis", transform: `translate(17 ${MARGIN.top}) rotate(-90)`, "text-anchor": "end" }, "component 2 →"));
  const labels = placeLabels(places, lines, width, height);
  for (const label of labels) if (label?.leader) svg.append(makeSvg("line", { class: "leader", ...label.leader }));
  places.forEach(([x, y], i) => {
    const group = makeSvg("g", { "data-point": i });
    group.append(makeSvg("title", {}, `${i + 1}: ${lines[i].text}`), makeSvg("circle", { cx: x, cy: y, r: 5 }));
    const label = labels[i];
    if (label) {
      const text = makeSvg("text", { x: label.x, y: label.y, "text-anchor": label.anchor });
      text.append(makeSvg("tspan", { class: "num" }, String(i + 1)), label.text ? " " + label.text : "");
      group.append(text);
    }
    group.addEventListener("pointerenter", () => showCell(i, state.result.tokens[i].nearest ?? i));
    svg.append(group);
  });
  $("plot").replaceChildren(svg);
  const [one, two] = projection.shares.map((share) => Math.round(share * 100));
  $("variance").textContent = lines.length > 2 ? `PCA, ${one} % + ${two} % of the variance` : "PCA";
}

/** Points -> places on the plot and its height. One scale for both axes: distances compare. */
function place(points, width) {
  const inner = [width - MARGIN.left - MARGIN.right - 40, 440 - MARGIN.top - MARGIN.bottom - 40];
  const bounds = [0, 1].map((k) => [Math.min(...points.map((p) => p[k])), Math.max(...points.map((p) => p[k]))]);
  const scale = Math.min(...bounds.map(([low, high], k) => inner[k] / Math.max(high - low, 1e-9)));
  const usable = Math.min(scale, 1e6);
  const middle = bounds.map(([low, high]) => (low + high) / 2);
  const tall = Math.max(180, Math.ceil((bounds[1][1] - bounds[1][0]) * usable));
  const centre = [MARGIN.left + 20 + inner[0] / 2, MARGIN.top + 20 + tall / 2];
  return {
    places: points.map(([x, y]) => [centre[0] + (x - middle[0]) * usable, centre[1] - (y - middle[1]) * usable]),
    height: tall + 40 + MARGIN.top + MARGIN.bottom,
  };
}

/**
 * A label for each point, the first of ATTEMPTS that touches no other label, leader or point: text
 * beside the point, shorter text or further off with a leader, the number alone; or null.
 */
function placeLabels(places, lines, width, height) {
  measure.font = '12.5px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
  const taken = places.map(([x, y]) => [x - 7, y - 7, x + 7, y + 7]);
  const frame = [MARGIN.left + 2, MARGIN.top + 2, width - MARGIN.right - 2, height - MARGIN.bottom - 2];
  const attempts = ATTEMPTS.filter(([length]) => !length || places.length <= MOST_TEXTS);
  const drawn = []; // boxes of labels, which a leader must not cross
  const order = places.map((_, i) => i).sort((a, b) => crowd(places, a) - crowd(places, b));
  const labels = places.map(() => null);
  for (const i of order) {
    labels[i] = firstFree(i, attempts, places[i], lines[i].text, taken, drawn, frame);
    if (!labels[i]) continue;
    taken.push(labels[i].box, ...leaderBoxes(labels[i].leader));
    drawn.push(labels[i].box);
  }
  return labels;
}

/** How far the nearest other point is: crowded points choose first. */
function crowd(places, i) {
  const [x, y] = places[i];
  return Math.min(Infinity, ...places.map(([u, v], j) => (i === j ? Infinity : Math.hypot(u - x, v - y))));
}

const MOST_TEXTS = 40; // points up to which labels hold text
// [letters of the text, distance from the point], in order of preference.
const ATTEMPTS = [[36, 9], [26, 9], [18, 9], [26, 22], [18, 22], [12, 9], [12, 22], [12, 36], [0, 9], [0, 22], [0, 36]];
const DIRECTIONS = [[1, 0], [-1, 0], [0, -1], [0, 1], [1, -1], [-1, -1], [1, 1], [-1, 1]];

function firstFree(i, attempts, [x, y], whole, taken, drawn, frame) {
  for (const [length, distance] of attempts) {
    const text = length ? shorten(whole, length) : "";
    const wide = measure.measureText(`${i + 1} ${text}`).width + (text ? 6 : 2);
    for (const [dx, dy] of DIRECTIONS) {
      const left = dx > 0 ? x + distance : dx < 0 ? x - distance - wide : x - wide / 2;
      const middle = y + dy * (distance + (dx ? 0 : 3));
      const box = [left, middle - 8, left + wide, middle + 8];
      const inside = box[0] >= frame[0] && box[1] >= frame[1] && box[2] <= frame[2] && box[3] <= frame[3];
      if (!inside || taken.some((other) => overlap(box, other))) continue;
      const at = dx > 0 ? left : dx < 0 ? left + wide : x;
      const leader = distance > 9 ? { x1: x, y1: y, x2: at, y2: middle - (dx ? 0 : dy * 8) } : null;
      if (leaderBoxes(leader).some((part) => drawn.some((other) => overlap(part, other)))) continue;
      const anchor = dx > 0 ? "start" : dx < 0 ? "end" : "middle";
      return { text, x: at + dx, y: middle + 4, anchor, box, leader };
    }
  }
  return null;
}

const overlap = (a, b) => a[2] >= b[0] && a[0] <= b[2] && a[3] >= b[1] && a[1] <= b[3];

/** Small boxes along a leader, its ends left out. */
function leaderBoxes(leader) {
  if (!leader) return [];
  return [0.3, 0.45, 0.6, 0.75, 0.9].map((part) => {
    const [x, y] = [leader.x1 + (leader.x2 - leader.x1) * part, leader.y1 + (leader.y2 - leader.y1) * part];
    return [x - 1, y - 1, x + 1, y + 1];
  });
}

function describePlot() {
  const { projection, lines } = state.result;
  const places = projection.points.slice(0, 20).map(([x, y], i) => `${i + 1} at ${signed(x)}, ${signed(y)}`);
  return `Scatter plot of ${plural(lines.length, "line")} on two principal components: ${places.join("; ")}`;
}

// ---------------------------------------------------------------- lines, timing, clients

function showResult() {
  const { lines, similarity, tokens } = state.result;
  $("error").hidden = true;
  for (const id of ["drawn", "spent", "seen"]) $(id).hidden = false;
  tokens.forEach((entry, i) => { entry.nearest = nearest(similarity[i], i); });
  $("numbers").checked = lines.length <= MOST_NUMBERS;
  $("tokens").checked = lines.length <= MOST_TOKENS;
  state.cell = null;
  showPlot();
  showHeat();
  showTimes();
  showLineList();
  showClient();
}

/** The line most similar to line i, or null. */
function nearest(row, i) {
  let best = null;
  row.forEach((value, j) => { if (j !== i && (best === null || value > row[best])) best = j; });
  return best;
}

function showTimes() {
  const { times, total, usage, dims, fingerprint, requestId, model } = state.result;
  const known = ["tokenize", "queue", "inference"].map((name) => times[name] ?? 0);
  const all = [...known, Math.max(0, total - known.reduce((a, b) => a + b, 0))];
  const bars = document.querySelectorAll(".times i");
  const labels = document.querySelectorAll("[data-time]");
  all.forEach((value, k) => {
    bars[k].style.width = `${(100 * value) / (total || 1)}%`;
    labels[k].textContent = ms(value);
  });
  $("total").textContent = `${ms(total)} in all`;
  const fact = (name, value, mono) => make("div", {}, make("b", {}, name), make("span", { className: mono ? "mono" : "" }, value));
  $("facts").replaceChildren(
    fact("Model", model),
    fact("Dimensions", String(dims)),
    fact("Tokens run", usage.total_tokens.toLocaleString("en")),
    fact("Texts cut", String(usage.truncated?.length ?? 0)),
    fact("Request id", requestId, true),
    fact("Fingerprint of these vectors", fingerprint, true),
  );
}

function showLineList() {
  const { lines, tokens, similarity, limit } = state.result;
  $("limit").textContent = `${limit.toLocaleString("en")} tokens a text at most`;
  $("line-list").replaceChildren(...lines.map(({ text }, i) => {
    const { count, total, truncated, nearest: other } = tokens[i];
    const closest = other === null ? "" : ` · closest ${other + 1} (${signed(similarity[i][other])})`;
    const cut = truncated ? [make("span", { className: "cut" }, `cut: ${total - count} of ${total} tokens left out`)] : [];
    const row = make("div", { className: "row" },
      make("span", { className: "no" }, String(i + 1)),
      make("span", { className: "text" }, text),
      make("span", { className: "count" }, ...cut, ` ${plural(count, "token")}${closest}`));
    const item = make("li", {}, row);
    if ($("tokens").checked) item.append(tokenList(tokens[i]));
    return item;
  }));
}

function tokenList({ tokens, token_ids: ids }) {
  return make("ol", { className: "tokens" }, ...tokens.map((token, k) => {
    const special = /^(\[[A-Z]+\]|<\/?[a-z_|]+>|<\|.*\|>)$/.test(token);
    return make("li", { className: special ? "special" : "", title: `token id ${ids[k]}` }, token);
  }));
}

/** A JavaScript string as a word of a POSIX shell. */
const shellWord = (text) => "'" + text.replaceAll("'", "'\\''") + "'";

function showClient() {
  const request = readRequest(readLines());
  const list = (indent) => "[\n" + request.input.map((text) => `${indent}  ${JSON.stringify(text)}`).join(",\n") + `\n${indent}]`;
  const { model, input, ...rest } = request;
  const fields = Object.entries(rest).filter(([, value]) => value !== undefined);
  const json = ["{", `  "model": ${JSON.stringify(model)},`, `  "input": ${input.length ? list("  ") : "[]"}` +
    fields.map(([key, value]) => `,\n  ${JSON.stringify(key)}: ${JSON.stringify(value)}`).join(""), "}"].join("\n");
  const key = state.needsKey ? ' \\\n  -H "Authorization: Bearer $EMBEDSERVE_KEY"' : "";
  $("curl").textContent =
    `curl -s ${location.origin}/v1/embeddings${key} \\\n  -H 'Content-Type: application/json' \\\n  -d ${shellWord(json)}\n`;
  $("python").textContent = pythonProgram(model, input.length ? list("    ").replaceAll("\n      ", "\n        ") : "[]", fields);
}

function pythonProgram(model, input, fields) {
  const own = fields.filter(([key]) => key !== "dimensions");
  const dimensions = fields.find(([key]) => key === "dimensions");
  const key = state.needsKey ? 'os.environ["EMBEDSERVE_KEY"]' : '"none"';
  return [
    ...(state.needsKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${location.origin}/openai/v1", api_key=${key})`,
    "answer = client.embeddings.create(",
    `    model=${JSON.stringify(model)},`,
    `    input=${input},`,
    ...(dimensions ? [`    dimensions=${dimensions[1]},`] : []),
    ...(own.length ? [`    extra_body={${own.map(([k, v]) => `${JSON.stringify(k)}: ${JSON.stringify(v)}`).join(", ")}},`] : []),
    ")",
    "for row in answer.data:",
    "    print(row.index, row.embedding[:4])",
    "",
  ].join("\n");
}

// ---------------------------------------------------------------- errors

function showError(error, lines = []) {
  const fromServer = error instanceof ServerError;
  const title = fromServer
    ? error.status === 401 ? "This server asks for an API key" : `The server refused: ${error.status} ${error.code ?? ""}`
    : "The server cannot be reached";
  const message = fromServer ? error.message : "No answer came. Is it still running, and is this page still its own?";
  const rows = [];
  const row = (name, ...value) => rows.push(make("dt", {}, name), make("dd", {}, ...value));
  if (fromServer) {
    if (error.status === 401) row("What to do", "Reload this page and give the key as password; any user name will do.");
    const index = /^input\[(\d+)\]/.exec(error.param ?? "")?.[1];
    if (index !== undefined && lines[index]) row("Line", `${lines[index].line}: ${shorten(lines[index].text, 120)}`, " ", goTo(lines[index].line));
    row("Status", String(error.status));
    if (error.code) row("Code", make("code", {}, error.code));
    if (error.param) row("Parameter", make("code", {}, error.param));
    if (error.requestId) row("Request id", make("code", {}, error.requestId));
  } else {
    row("Detail", String(error.message || error));
  }
  $("error").replaceChildren(make("h2", {}, title), make("p", {}, message), make("dl", {}, ...rows));
  $("error").hidden = false;
  $("error").scrollIntoView({ block: "nearest" });
  for (const id of ["drawn", "spent", "seen"]) $(id).hidden = true;
  state.result = null;
  say("Not embedded; the error says why.");
}

/** A button that puts the cursor on a line of the field. */
function goTo(line) {
  const button = make("button", { type: "button" }, "Go to line");
  button.addEventListener("click", () => {
    const before = $("lines").value.split("\n").slice(0, line - 1).join("\n");
    const start = before.length + (line > 1 ? 1 : 0);
    const end = ($("lines").value + "\n").indexOf("\n", start);
    $("lines").focus();
    $("lines").setSelectionRange(start, end);
  });
  return button;
}

// ---------------------------------------------------------------- start

function countLines() {
  $("line-count").textContent = plural(readLines().length, "line");
}

async function copy(button) {
  const source = $(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    say("Copied.");
    button.textContent = "Copied";
  } catch {
    // Only pages from https or this machine may write to the clipboard: select instead.
    getSelection().selectAllChildren(source);
    source.focus();
    say("Selected; copy it with Ctrl+C.");
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

async function start() {
  await loadModels();
  await loadModel();
}

function listen() {
  $("form").addEventListener("submit", (event) => { event.preventDefault(); embed(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); embed(); }
  });
  $("lines").addEventListener("input", () => { countLines(); showClient(); });
  $("model").addEventListener("change", () => loadModel().then(embed, showError));
  $("prompt").addEventListener("change", () => { showPrompt(); showClient(); });
  for (const id of ["dimensions", "truncate"]) $(id).addEventListener("input", showClient);
  for (const id of ["numbers", "stretch"]) $(id).addEventListener("change", () => state.result && showHeat());
  $("tokens").addEventListener("change", () => state.result && showLineList());
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
  dark.addEventListener("change", () => state.result && showHeat());
  let width = innerWidth;
  addEventListener("resize", () => {
    if (!state.result || innerWidth === width) return;
    width = innerWidth;
    showPlot();
    showHeat();
  });
}

listen();
countLines();
findKeys().then(start).then(embed).catch(showError);
