"use strict";
// What data.js holds of each row.

function unpacked(text, Kind) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return new Kind(bytes.buffer);
}

const count = data.ids.length;
const pictures = unpacked(data.pictures, Int32Array);
const boxes = unpacked(data.boxes, Int32Array);
const outlineStarts = unpacked(data.outlineStarts, Int32Array);
const outlines = unpacked(data.outlines, Float32Array);
const stored = data.neighbours && {
  each: data.neighbours.each,
  rows: unpacked(data.neighbours.rows, Int32Array),
};
const columns = data.columns.map((column) => ({
  ...column,
  group: unpacked(column.group, Int32Array),
  codes: unpacked(column.codes, Int32Array),
  values: unpacked(column.values, Float32Array),
}));
const classes = columns[0];

const classOf = (row) => valueOf(classes, row);
const thumbOf = (row) => (data.served ? `thumb/${row}?size=128` : `thumbs/${row}.jpg`);
const imageOf = (row) => (data.served ? `image/${row}` : `images/${pictures[row]}.jpg`);

function valueOf(column, row) {
  if (column.codes.length) return column.names[column.codes[row]];
  const value = column.values[row];
  return Number.isFinite(value) ? Number(value.toPrecision(4)) : null;
}

function boxOf(row) {
  const [left, top, right, bottom] = boxes.subarray(4 * row, 4 * row + 4);
  return right > left ? { left, top, right, bottom } : null;
}

function cornersOf(row) {
  const flat = outlines.subarray(outlineStarts[row], outlineStarts[row + 1]);
  if (flat.length) return Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i], flat[2 * i + 1]]);
  const box = boxOf(row);
  if (!box) return [];
  return [[box.left, box.top], [box.right, box.top], [box.right, box.bottom], [box.left, box.bottom]];
}

/** Return what the page's server answers, or null. */
async function asked(path) {
  const answer = await fetch(path).catch(() => null);
  return answer?.ok ? answer.json() : null;
}

/** Return width and height of the image that a row lies in; null: it cannot be read. */
async function sizeOf(row) {
  return data.served ? asked(`size/${row}`) : data.sizes[pictures[row]];
}

/** Return the rows that are nearest to a row, the nearest first. */
async function neighboursOf(row) {
  if (!stored) return data.served ? ((await asked(`near/${row}`))?.rows ?? []) : [];
  const near = stored.rows.subarray(row * stored.each, (row + 1) * stored.each);
  return Array.from(near).filter((other) => other !== row);
}
