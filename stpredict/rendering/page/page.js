/* The slide, the map over it, and the panel beside it. */

const MICRO = "\u00b5m";

const byId = (id) => document.getElementById(id);

/** An element with properties and children; text is only ever set as text. */
function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/* ---- what is written on the page ---- */

function geneRow(name, index, reliability) {
  const input = element("input", { type: "radio", name: "gene", value: index, checked: index === 0 });
  input.addEventListener("change", () => showGene(index));
  return element("label", {}, input, element("span", { className: "name", textContent: name }), reliability);
}

function showTexts() {
  document.title = `${data.name} \u2013 predicted gene expression`;
  byId("title").textContent = data.name;
  byId("subtitle").textContent = `Gene expression predicted from H&E by ${data.model}`;
  byId("maps").querySelector("legend").append(element("span", { className: "note", textContent: "correlation when held out" }));
  byId("genes").append(...genes.map((one, index) => {
    const number = one.held_out === null ? "" : `${one.held_out.toFixed(2)} `.replace("-", "\u2212");
    const className = one.poor ? "reliability poor" : "reliability";
    return geneRow(one.name, index, element("span", { className, textContent: number + one.reliability }));
  }), geneRow("none", -1, ""));
  for (const { text, warning } of data.facts)
    byId(warning ? "warnings" : "facts").append(element("li", { textContent: text, className: warning ? "warning" : "" }));
  byId("warnings").hidden = !byId("warnings").children.length;
  const above = () => document.body.style.setProperty("--above", `${document.querySelector("main").offsetTop}px`);
  window.addEventListener("resize", above);
  above();
}

const definitions = (pairs) => element("dl", {}, ...pairs.flatMap(([key, text]) => [
  element("dt", { textContent: key }), element("dd", { textContent: text })]));

function foldTable({ title, subtitle, rows, notes }) {
  const head = element("tr", {}, element("th"), ...data.card.scores.map((score) => element("th", { textContent: score, scope: "col" })));
  const body = rows.map(([name, ...scores]) => element("tr", { className: name === "model" ? "ours" : "" },
    element("th", { textContent: name === "model" ? "this model" : name, scope: "row" }),
    ...scores.map((score) => element("td", { textContent: score }))));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  return [element("h3", { textContent: title }), element("p", { textContent: subtitle }), element("div", { className: "table" }, table),
    ...notes.map((note) => element("p", { textContent: note }))];
}

function showDetails() {
  const card = byId("card").querySelector(".body");
  if (data.card) card.append(definitions(data.card.facts), ...data.card.folds.flatMap(foldTable));
  else card.append(element("p", { textContent: "The result does not hold the model's card." }));
  byId("provenance").querySelector(".body").append(definitions(data.provenance));
}

showTexts(); // before the viewer, which so opens at its final size
showDetails();

/* ---- the slide ---- */

const viewer = OpenSeadragon({
  element: byId("viewer"),
  tileSources: {
    width: image.width,
    height: image.height,
    tileSize: image.tile_px,
    tileOverlap: 1,
    minLevel: 0,
    maxLevel: image.levels.length - 1,
    getTileUrl(level, x, y) {
      const columns = Math.ceil(image.width / 2 ** (this.maxLevel - level) / image.tile_px);
      return `data:image/jpeg;base64,${image.levels[level][y * columns + x]}`;
    },
  },
  drawer: "canvas",
  showNavigationControl: false,
  gestureSettingsMouse: { clickToZoom: false },
  visibilityRatio: 0.5,
  maxZoomPixelRatio: 8,
  animationTime: 0.4,
});
window.viewer = viewer;

/** Screen position of the slide's corner and screen pixels per um, along x and y. */
function frame() {
  const corner = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
  const pixels = viewer.viewport.getContainerSize().x * viewer.viewport.getZoom(true);
  return { x: corner.x, y: corner.y, kx: pixels / slideWidth, ky: (pixels * image.height) / image.width / slideHeight };
}

/* ---- the map over it ---- */

const FINE = 8; // screen pixels: smaller hexagons and disks are drawn as boxes
const layer = element("canvas", { className: "layer" });
const marks = svg("svg", { class: "layer", "aria-hidden": "true" });
const context = layer.getContext("2d");
let pixels = null;
let gene = null;
let shades = new Int16Array(count); // place in the colour table, -1 for none
let chosen; // the spot that is read out

function showGene(index) {
  gene = genes[index] ?? null;
  for (let spot = 0; spot < count; spot++) {
    const value = gene ? gene.value(spot) : NaN;
    shades[spot] = Number.isNaN(value) ? -1 : gene.colour(value);
  }
  drawMap();
  showScale();
  showReadout();
}

function drawMap() {
  if (!viewer.isOpen()) return;
  const ratio = Math.min(2, window.devicePixelRatio || 1);
  const { x: width, y: height } = viewer.viewport.getContainerSize();
  if (layer.width !== Math.round(width * ratio) || layer.height !== Math.round(height * ratio) || !pixels) {
    layer.width = Math.round(width * ratio);
    layer.height = Math.round(height * ratio);
    pixels = context.createImageData(layer.width, layer.height);
  }
  const at = frame();
  const scaled = { x: at.x * ratio, y: at.y * ratio, kx: at.kx * ratio, ky: at.ky * ratio };
  context.clearRect(0, 0, layer.width, layer.height);
  if (gene && spots.layout !== "square" && cellWidth * at.kx >= FINE) drawOutlines(scaled);
  else if (gene) drawBoxes(scaled);
  drawMark(at);
  drawScaleBar(at);
}

/** Whole pixels, so that neighbours meet without a seam. */
function drawBoxes({ x, y, kx, ky }) {
  const screen = new Uint32Array(pixels.data.buffer);
  const palette = Uint32Array.from({ length: 256 }, (_, i) =>
    ((255 << 24) | (gene.table[3 * i + 2] << 16) | (gene.table[3 * i + 1] << 8) | gene.table[3 * i]) >>> 0);
  screen.fill(0);
  for (let spot = 0, i = 0; spot < count; spot++, i += 4) {
    if (shades[spot] < 0) continue;
    const x0 = Math.max(0, Math.round(x + boxes[i] * kx));
    const y0 = Math.max(0, Math.round(y + boxes[i + 1] * ky));
    const x1 = Math.min(layer.width, Math.round(x + boxes[i + 2] * kx));
    const y1 = Math.min(layer.height, Math.round(y + boxes[i + 3] * ky));
    if (x1 <= x0) continue;
    for (let row = y0; row < y1; row++) screen.fill(palette[shades[spot]], row * layer.width + x0, row * layer.width + x1);
  }
  context.putImageData(pixels, 0, 0);
}

/** True shapes of the spots in view, colour by colour. */
function drawOutlines({ x, y, kx, ky }) {
  const margin = spots.diameter_um + cellWidth;
  const paths = new Map();
  for (let spot = 0, i = 0; spot < count; spot++, i += 4) {
    const seen = x + (boxes[i + 2] + margin) * kx > 0 && x + (boxes[i] - margin) * kx < layer.width &&
      y + (boxes[i + 3] + margin) * ky > 0 && y + (boxes[i + 1] - margin) * ky < layer.height;
    if (!seen || shades[spot] < 0) continue;
    if (!paths.has(shades[spot])) paths.set(shades[spot], new Path2D());
    const path = paths.get(shades[spot]);
    outline(spot).forEach(([px, py], k) => path[k ? "lineTo" : "moveTo"](x + px * kx, y + py * ky));
    path.closePath();
  }
  context.lineWidth = 0.7; // hides the seams between neighbours
  for (const [shade, path] of paths) {
    context.fillStyle = context.strokeStyle = rgb(gene.table, shade);
    context.fill(path);
    context.stroke(path);
  }
}

function drawMark({ x, y, kx, ky }) {
  const points = chosen === undefined ? "" : outline(chosen).map(([px, py]) => `${x + px * kx},${y + py * ky}`).join(" ");
  for (const polygon of marks.children) polygon.setAttribute("points", points);
}

function drawScaleBar({ kx }) {
  const widest = Math.min(140, viewer.viewport.getContainerSize().x / 3) / kx;
  const unit = 10 ** Math.floor(Math.log10(widest));
  const um = [5, 2, 1].map((n) => n * unit).find((length) => length <= widest);
  byId("scale-line").style.width = `${um * kx}px`;
  byId("scale-text").textContent = um >= 1000 ? `${um / 1000} mm` : `${Number(um.toPrecision(1))} ${MICRO}`;
}

function fade() {
  layer.style.opacity = byId("opacity").value / 100;
  byId("opacity-text").textContent = `${byId("opacity").value}%`;
}

/* ---- its colours ---- */

function showScale() {
  byId("scale").hidden = !gene;
  if (!gene) return;
  const bins = new Array(40).fill(0);
  const values = [];
  for (let spot = 0; spot < count; spot++) {
    const value = gene.value(spot);
    if (Number.isNaN(value)) continue;
    values.push(value);
    const bin = Math.floor(((value - gene.low) / (gene.high - gene.low)) * bins.length);
    bins[Math.min(bins.length - 1, Math.max(0, bin))]++;
  }
  values.sort((a, b) => a - b);
  const tallest = Math.max(...bins, 1);
  byId("histogram").replaceChildren(...bins.map((n, i) => svg("rect", {
    x: i + 0.05, y: 100 - (97 * n) / tallest, width: 0.9, height: (97 * n) / tallest,
    fill: rgb(gene.table, Math.round(((i + 0.5) / bins.length) * 255)),
  })));
  const stops = Array.from({ length: 33 }, (_, i) => rgb(gene.table, Math.round((i * 255) / 32)));
  byId("colour-bar").style.background = `linear-gradient(to right, ${stops.join(",")})`;
  byId("scale-title").textContent = `${gene.name}: ${gene.unit}`;
  const decimals = Math.max(2, Math.ceil(1 - Math.log10(gene.high - gene.low)));
  byId("ticks").replaceChildren(...[0, 0.25, 0.5, 0.75, 1].map((part) =>
    element("span", { textContent: (gene.low + part * (gene.high - gene.low)).toFixed(decimals) })));
  const share = (test) => {
    const percent = (100 * values.filter(test).length) / values.length;
    return percent > 0 && percent < 1 ? "under 1%" : `${Math.round(percent)}%`;
  };
  const summary = values.length
    ? `Spots of this slide: ${values[0].toFixed(2)} to ${values.at(-1).toFixed(2)}, ` +
      `median ${values[values.length >> 1].toFixed(2)}; ${share((v) => v < gene.low)} lie below and ` +
      `${share((v) => v > gene.high)} above the range of the colours.`
    : "No spot of this slide could be read.";
  byId("distribution").textContent = `${summary} That range is from ${gene.range_from}.`;
  byId("histogram").setAttribute("aria-label", `Distribution of ${gene.name}. ${summary}`);
}

/* ---- reading out a spot ---- */

function read(position) {
  const { x, y, kx, ky } = frame();
  const spot = spotAt((position.x - x) / kx, (position.y - y) / ky);
  if (spot === chosen) return;
  chosen = spot;
  drawMark(frame());
  showReadout();
}

const shown = (value) => (Number.isNaN(value) ? "could not be read" : value.toFixed(3));

function showReadout() {
  if (chosen === undefined) {
    byId("readout").replaceChildren(element("p", { className: "where", textContent: "Point at a spot or tap it to read it out." }));
    return;
  }
  const [x, y] = centre(chosen);
  const place = given ? `s${spots.column[chosen]}` : `r${spots.row[chosen]}c${spots.column[chosen]}`;
  const um = `${x.toFixed(0)}, ${y.toFixed(0)} ${MICRO}`;
  const px = `${(x / mpp[0]).toFixed(1)}, ${(y / mpp[1]).toFixed(1)} px`;
  const rows = genes.map((one) => element("div", { className: one === gene ? "chosen" : "" },
    element("dt", { textContent: one.name }), element("dd", { textContent: shown(one.value(chosen)) })));
  byId("readout").replaceChildren(
    element("strong", { textContent: `${data.name}:${place}` }),
    element("p", { className: "where", textContent: `x, y: ${um} (${px}); tissue ${Math.round(spots.tissue[chosen] / 2.55)}%` }),
    element("dl", {}, ...rows));
}

/* ---- everything together ---- */

marks.append(svg("polygon", { class: "halo" }), svg("polygon", {}));
viewer.canvas.append(layer, marks);
viewer.canvas.setAttribute("aria-label",
  "Slide. Arrow keys move it, plus and minus zoom, 0 shows all of it; the spot at its centre is read out.");
let byKeyboard = false;
viewer.addHandler("canvas-key", (event) => {
  byKeyboard = true;
  event.preventDefaultAction ||= ["r", "f"].includes(event.originalEvent.key.toLowerCase()); // maps neither turn nor flip
});
viewer.addHandler("update-viewport", drawMap);
viewer.addHandler("animation-finish", () => {
  if (byKeyboard) read(viewer.viewport.getContainerSize().divide(2));
});
viewer.addHandler("canvas-click", (event) => read(event.position));
const pointed = (event) => {
  byKeyboard = false;
  const box = viewer.canvas.getBoundingClientRect();
  if (event.pointerType === "mouse") read({ x: event.clientX - box.left, y: event.clientY - box.top });
};
viewer.canvas.addEventListener("pointermove", pointed);
viewer.canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && read({ x: -1e9, y: -1e9 }));
byId("zoom-in").addEventListener("click", () => viewer.viewport.zoomBy(1.6).applyConstraints());
byId("zoom-out").addEventListener("click", () => viewer.viewport.zoomBy(1 / 1.6).applyConstraints());
byId("zoom-fit").addEventListener("click", () => viewer.viewport.goHome());

byId("opacity").addEventListener("input", fade);
fade();
showGene(0);
