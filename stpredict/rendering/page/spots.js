"use strict";

/* What the page holds, and where its spots lie. */

const data = JSON.parse(document.getElementById("data").textContent);
const { spots, genes, image } = data;
const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };
const NO_VALUE = 65535;

function decoded({ type, data }) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new ARRAYS[type](bytes.buffer);
}

for (const key of ["row", "column", "tissue", "x", "y"]) if (spots[key]) spots[key] = decoded(spots[key]);
const count = spots.row.length;
const colours = Object.fromEntries(Object.entries(data.colours).map(([name, table]) => [name, decoded(table)]));
const rgb = (table, i) => `rgb(${table[3 * i]},${table[3 * i + 1]},${table[3 * i + 2]})`;

for (const gene of genes) {
  const codes = decoded(gene.values);
  gene.value = (spot) => (codes[spot] === NO_VALUE ? NaN : gene.values.low + codes[spot] * gene.values.step);
  gene.table = colours[gene.colour_map];
  gene.colour = (value) => {
    const position = (value - gene.low) / (gene.high - gene.low);
    return Math.round(255 * Math.min(1, Math.max(0, position)));
  };
}

/* ---- where spots lie: um from the slide's corner, alike along x and y ---- */

const { mpp, dimensions, bounds } = data.slide;
const slideWidth = dimensions[0] * mpp[0];
const slideHeight = dimensions[1] * mpp[1];
const [left, top_] = [bounds[0] * mpp[0], bounds[1] * mpp[1]];
const [right, bottom] = [left + bounds[2] * mpp[0], top_ + bounds[3] * mpp[1]];
const given = spots.layout === "given";
const radius = spots.diameter_um / 2;
const cellWidth = given ? spots.diameter_um : spots.step_x;

function latticeCentre(row, column) {
  const shift = spots.layout === "hex" ? (row % 2) / 2 : 0;
  return [left + (column + 0.5 + shift) * spots.step_x, top_ + spots.first_y + row * spots.step_y];
}

function centre(spot) {
  return given ? [spots.x[spot] * mpp[0], spots.y[spot] * mpp[1]] : latticeCentre(spots.row[spot], spots.column[spot]);
}

/** Spots by their place: by row and column on a lattice, in bins as wide as a spot where positions were given. */
const places = new Map();
const placeOf = (row, column) => row * 1e8 + column;
const binsOf = (x, y) => [Math.floor(y / spots.diameter_um), Math.floor(x / spots.diameter_um)];
for (let spot = 0; spot < count; spot++) {
  const place = given ? placeOf(...binsOf(...centre(spot))) : placeOf(spots.row[spot], spots.column[spot]);
  if (given && places.has(place)) places.get(place).push(spot);
  else places.set(place, given ? [spot] : spot);
}

/** The given spots of the nine bins around a point, which are all that lie within a diameter. */
function givenNear(x, y) {
  const [row, column] = binsOf(x, y);
  const near = [];
  for (let i = row - 1; i <= row + 1; i++)
    for (let j = column - 1; j <= column + 1; j++) near.push(...(places.get(placeOf(i, j)) ?? []));
  return near;
}

/** Rows and columns of the lattice, with or without a spot, that may lie nearest to a point. */
function latticeNear(x, y) {
  const near = [];
  const above = Math.floor((y - top_ - spots.first_y) / spots.step_y);
  for (const row of [above, above + 1].map((row) => Math.min(spots.rows - 1, Math.max(0, row)))) {
    const [first] = latticeCentre(row, 0);
    const last = Math.ceil((right - first) / spots.step_x) - 1;
    const column = Math.min(last, Math.max(0, Math.round((x - first) / spots.step_x)));
    if (column >= 0) near.push([row, column]);
  }
  return near;
}

/** The spot whose cell or disk holds a point, or undefined. */
function spotAt(x, y) {
  const distance = ([cx, cy]) => Math.hypot(cx - x, cy - y);
  const nearest = (list, where) => list.reduce((a, b) => (distance(where(b)) < distance(where(a)) ? b : a), list[0]);
  if (given) {
    const spot = nearest(givenNear(x, y), centre);
    return spot !== undefined && distance(centre(spot)) <= radius ? spot : undefined;
  }
  if (x < left || y < top_ || x >= right || y >= bottom) return undefined;
  const place = nearest(latticeNear(x, y), ([row, column]) => latticeCentre(row, column));
  return place && places.get(placeOf(...place));
}

/** Left, top, right and bottom of each spot: exact on a square lattice. The outermost cells reach the bounds. */
const boxes = new Float64Array(4 * count);
for (let spot = 0; spot < count; spot++) {
  const [x, y] = centre(spot);
  if (given) {
    const half = (radius * Math.sqrt(Math.PI)) / 2; // of a square as large as the disk
    boxes.set([x - half, y - half, x + half, y + half], 4 * spot);
    continue;
  }
  const [row, column, halfX, halfY] = [spots.row[spot], spots.column[spot], spots.step_x / 2, spots.step_y / 2];
  boxes.set([
    column === 0 ? left : x - halfX,
    row === 0 ? top_ : y - halfY,
    x + spots.step_x >= right ? right : x + halfX,
    row === spots.rows - 1 ? bottom : y + halfY,
  ], 4 * spot);
}

/** The part of a polygon that lies nearer to (ax, ay) than to (bx, by). */
function nearerPart(points, [ax, ay], [bx, by]) {
  const side = ([x, y]) => (x - (ax + bx) / 2) * (bx - ax) + (y - (ay + by) / 2) * (by - ay);
  return points.flatMap((p, i) => {
    const q = points[(i + 1) % points.length];
    const [a, b] = [side(p), side(q)];
    const kept = a <= 0 ? [p] : [];
    if (a * b < 0) kept.push([p[0] + ((q[0] - p[0]) * a) / (a - b), p[1] + ((q[1] - p[1]) * a) / (a - b)]);
    return kept;
  });
}

const outlines = new Map();

/** A spot's exact shape: every point belongs to its nearest centre, and to a given spot only within its diameter. */
function outline(spot) {
  if (!outlines.has(spot)) outlines.set(spot, makeOutline(spot));
  return outlines.get(spot);
}

function makeOutline(spot) {
  const [x, y] = centre(spot);
  if (given) {
    const turn = (i) => (i * Math.PI) / 24;
    const disk = Array.from({ length: 48 }, (_, i) => [x + radius * Math.cos(turn(i)), y + radius * Math.sin(turn(i))]);
    const others = givenNear(x, y).map(centre).filter(([cx, cy]) => cx !== x || cy !== y);
    return others.reduce((points, other) => nearerPart(points, [x, y], other), disk);
  }
  const [x0, y0, x1, y1] = boxes.subarray(4 * spot, 4 * spot + 4);
  if (spots.layout === "square") return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
  const [row, column, pitch] = [spots.row[spot], spots.column[spot], spots.step_x];
  const [before, after] = row % 2 ? [column, column + 1] : [column - 1, column];
  const [a, b] = [Math.max(left, x - pitch), Math.min(right, x + pitch)];
  const [c, d] = [Math.max(top_, y - pitch), Math.min(bottom, y + pitch)];
  return [[row, column - 1], [row, column + 1], [row - 1, before], [row - 1, after], [row + 1, before], [row + 1, after]]
    .map(([r, k]) => [r, k, ...latticeCentre(r, k)])
    .filter(([r, k, cx, cy]) => r >= 0 && k >= 0 && cx < right && cy < bottom)
    .reduce((points, [, , cx, cy]) => nearerPart(points, [x, y], [cx, cy]), [[a, c], [b, c], [b, d], [a, d]]);
}
